// Exits 0 when every stock client can be loaded here.
await Promise.all(["tus-js-client", "@uppy/core", "@uppy/tus", "jose"].map((name) => import(name)));
