// One JSON object a line on stdout: what the Python side reads.
import { writeSync } from "node:fs";

export function emit(event, fields = {}) {
  // Synchronous, so that a line is out before the process is killed or ends.
  writeSync(1, `${JSON.stringify({ event, ...fields })}\n`);
}

// The request of the process: JSON as the only argument, or on stdin where that is "-".
export async function readRequest() {
  const argument = process.argv[2] ?? "-";
  if (argument !== "-") return JSON.parse(argument);
  let text = "";
  for await (const piece of process.stdin) text += piece;
  return JSON.parse(text);
}

// A progress callback that emits at most once per `step` bytes, and at the end.
export function progress(step = 256 * 1024) {
  let last = -step;
  return (sent, total) => {
    if (sent - last < step && sent !== total) return;
    last = sent;
    emit("progress", { sent, total });
  };
}
