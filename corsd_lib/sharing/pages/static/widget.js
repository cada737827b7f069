// The host in a notebook: an anywidget. Traits are the state, binary buffers the data, custom messages the requests to Python.

const notebookLinks = (globalThis.corsdLinks ??= makeLinks());

/** An answer in which references are replaced by its binary parts, which were sent as separate buffers. */
function whole_(value, buffers) {
  if (Array.isArray(value)) return value.map((v) => whole_(v, buffers));
  if (value === null || typeof value !== "object") return value;
  if (Number.isInteger(value.buffer)) {
    const { buffer, ...rest } = value;
    return "dtype" in rest ? { ...rest, bytes: buffers[buffer] } : buffers[buffer];
  }
  return Object.fromEntries(Object.entries(value).map(([name, v]) => [name, whole_(v, buffers)]));
}

/** Requests to Python; `began` is called when the kernel, which may be busy with a cell, starts one. */
function asker(model, began) {
  const me = Math.random().toString(36).slice(2), waiting = new Map();
  let asked = 0;
  const listen = (content, buffers) => {
    if (waiting.has(content.began)) began();
    const { resolve, reject } = waiting.get(content.answer) ?? {};
    if (!resolve) return;
    waiting.delete(content.answer);
    if (content.error !== undefined) reject(new Error(content.error));
    else resolve(whole_(content.value, buffers));
  };
  const gone = "The kernel was restarted or has stopped: run the cell of this explorer again.";
  const lost = () => { // the kernel that was asked will not answer
    for (const { reject } of waiting.values()) reject(new Error(gone));
    waiting.clear();
  };
  model.on("msg:custom", listen);
  model.on("comm_live_update", lost);
  const ask = (what, given) => new Promise((resolve, reject) => {
    const question = `${me}/${++asked}`;
    waiting.set(question, { resolve, reject });
    try {
      model.send({ question, what, given });
    } catch {
      waiting.delete(question);
      reject(new Error(gone));
    }
  });
  const deaf = () => {
    model.off("msg:custom", listen);
    model.off("comm_live_update", lost);
  };
  return [ask, deaf];
}

function render({ model, el: box }) {
  const names = model.get("_names"), now = () => Object.fromEntries(names.map((name) => [name, model.get(name)]));
  const store = makeStore(now(), (patch) => {
    model.set(patch); // all at once: after each of several calls the state would be half old, and be received as such
    model.save_changes();
  });
  const place = el("div", {});
  const [ask, deaf] = asker(model, () => place.dispatchEvent(new Event("began")));
  const faces = (positions) => ask("faces", { positions });
  const receive = () => store.receive(now());
  const fed = []; // functions to call when the data changes
  const tell = () => fed.forEach((listener) => listener(model.get("_feed")));
  const feed = (listener) => { fed.push(listener); return model.get("_feed"); };
  const host = { data: model.get("_data"), store, ask, faces, links: notebookLinks, feed };
  model.on("change", receive);
  model.on("change:_feed", tell);
  const heard = ({ said }) => { if (said) place.corsd?.say?.(said); };
  model.on("msg:custom", heard);
  box.append(place);
  place.corsd = mount(model.get("_kind"), place, host);
  return () => {
    model.off("change", receive);
    model.off("change:_feed", tell);
    model.off("msg:custom", heard);
    deaf();
    notebookLinks.leave(host);
  };
}

export default { render };
