// tus-js-client, unmodified, driven by JSON:
//   node upload.mjs '{"file": "a.bin", "endpoint": "http://127.0.0.1:8080/files?sig=…", …}'
// Besides `file`, `stream`, `abortAt`, `terminateAt` and `urlStorage`, each member is an option of tus.Upload.
import { createReadStream } from "node:fs";
import { PassThrough } from "node:stream";
import * as tus from "tus-js-client";
import { emit, progress, readRequest } from "./events.mjs";

const { file, stream = false, abortAt, terminateAt, urlStorage, ...options } = await readRequest();

// A stream without a path is what a recorder or a pipe looks like: its length cannot be known beforehand.
const source = stream ? createReadStream(file).pipe(new PassThrough()) : createReadStream(file);
const report = progress();
let stopping = false;

function describe(error) {
  const response = error.originalResponse;
  return {
    message: error.message,
    status: response ? response.getStatus() : null,
    body: response ? response.getBody() : null,
  };
}

async function stop(event, terminate) {
  stopping = true;
  try {
    await upload.abort(terminate);
    emit(event, { url: upload.url });
    process.exit(0);
  } catch (error) {
    emit("error", describe(error));
    process.exit(1);
  }
}

const upload = new tus.Upload(source, {
  ...options,
  ...(urlStorage ? { urlStorage: new tus.FileUrlStorage(urlStorage) } : {}),
  onUploadUrlAvailable: () => emit("url", { url: upload.url }),
  onAfterResponse: (request, response) =>
    emit("response", {
      method: request.getMethod(),
      status: response.getStatus(),
      offset: response.getHeader("Upload-Offset") ?? null,
      location: response.getHeader("Location") ?? null,
    }),
  onProgress: (sent, total) => {
    if (stopping) return;
    report(sent, total);
    if (terminateAt !== undefined && sent >= terminateAt) void stop("terminated", true);
    else if (abortAt !== undefined && sent >= abortAt) void stop("aborted", false);
  },
  onSuccess: ({ lastResponse }) => {
    emit("success", { url: upload.url, file_id: lastResponse?.getHeader("Attachd-File-Id") ?? null });
    process.exit(0);
  },
  onError: (error) => {
    if (stopping) return;
    emit("error", describe(error));
    process.exit(1);
  },
});

if (urlStorage) {
  const [previous] = await upload.findPreviousUploads();
  if (previous) {
    emit("resuming", { url: previous.uploadUrl });
    upload.resumeFromPreviousUpload(previous);
  }
}
upload.start();
