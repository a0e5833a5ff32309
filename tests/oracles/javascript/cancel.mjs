// Cancels a request that waits and one that runs, and asks for their results.
import { fal } from "@fal-ai/client";

const endpointId = "fal-ai/ideogram/v3";

async function submit(prompt) {
  const { request_id } = await fal.queue.submit(endpointId, { input: { prompt } });
  return request_id;
}

const requests = [await submit("runs"), await submit("waits")];
const seen = [];
for (const requestId of requests.toReversed()) {
  const { status } = await fal.queue.status(endpointId, { requestId });
  await fal.queue.cancel(endpointId, { requestId });
  const error = await fal.queue.result(endpointId, { requestId }).catch((error) => error);
  seen.push({ status, error: error.name, code: error.status, body: error.body });
}

console.log(JSON.stringify(seen));
