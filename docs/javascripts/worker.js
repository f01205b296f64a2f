// Browsers start no worker from a file, and the theme searches in one. In a folder a hidden frame takes its place.
if (location.protocol === "file:") {
  window.IFrameWorker = window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      this.frame.title = "Search";
      document.body.append(this.frame);
      const view = this.frame.contentWindow;
      view.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
      this.started = new Promise((started) => {
        const script = view.document.createElement("script");
        script.src = new URL(url, location.href);
        script.onload = () => started(view);
        view.document.head.append(script);
      });
    }
    postMessage(data) {
      this.started.then((view) => view.dispatchEvent(new view.MessageEvent("message", { data })));
    }
    terminate() {
      this.frame.remove();
    }
  };
}
