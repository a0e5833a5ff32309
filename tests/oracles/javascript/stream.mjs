// Follows two requests by the status stream: by itself, and as the mode of a subscription.
import { fal } from "@fal-ai/client";

const endpointId = "fal-ai/ideogram/v3";

async function follow() {
  const { request_id: requestId } = await fal.queue.submit(endpointId, { input: { prompt: "x" } });
  const stream = await fal.queue.streamStatus(endpointId, { requestId, logs: true });
  const statuses = [];
  stream.on("data", ({ status }) => statuses.push(status));
  return { statuses, last: await stream.done() };
}

async function subscribe() {
  const updates = [];
  const result = await fal.subscribe(endpointId, {
    input: { prompt: "y" },
    mode: "streaming",
    logs: true,
    onQueueUpdate: ({ status }) => updates.push(status),
  });
  return { updates, result };
}

const [followed, subscribed] = await Promise.all([follow(), subscribe()]);

console.log(JSON.stringify({ ...followed, ...subscribed }));
