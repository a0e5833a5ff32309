// Submits with a webhook at the address that WEBHOOK_URL names.
import { fal } from "@fal-ai/client";

const { request_id } = await fal.queue.submit("fal-ai/ideogram/v3", {
  input: { prompt: "x" },
  webhookUrl: process.env.WEBHOOK_URL,
});

console.log(JSON.stringify(request_id));
