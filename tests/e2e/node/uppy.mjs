// Uppy core with its Tus plugin, unmodified, without a browser:
//   node uppy.mjs '{"file": "a.bin", "name": "a.bin", "type": "text/plain", "endpoint": "http://…/files?sig=…", …}'
// Besides `file`, `name` and `type`, each member is an option of the Tus plugin.
import { readFile } from "node:fs/promises";
import Uppy from "@uppy/core";
import Tus from "@uppy/tus";
import { emit, progress, readRequest } from "./events.mjs";

const { file, name = "file.bin", type = "application/octet-stream", ...options } = await readRequest();

const uppy = new Uppy({ autoProceed: false });
uppy.use(Tus, { storeFingerprintForResuming: false, removeFingerprintOnSuccess: true, ...options });
const report = progress();
uppy.on("upload-progress", (_file, { bytesUploaded, bytesTotal }) => report(bytesUploaded, bytesTotal));

// In Node tus-js-client takes Buffers and streams, no Blobs; Uppy reads only `size` of what it hands on.
const bytes = await readFile(file);
uppy.addFile({ name, type, data: Object.assign(bytes, { size: bytes.length }) });

const result = await uppy.upload();
for (const done of result.successful) emit("success", { url: done.uploadURL });
for (const failed of result.failed) {
  emit("error", {
    message: String(failed.error),
    status: failed.response?.status ?? null,
  });
}
process.exit(result.failed.length ? 1 : 0);
