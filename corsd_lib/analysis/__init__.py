"""What the snapshots of a run say: relations, class structure, embeddings for looking at, and exits. Arrays in, numbers out."""
