// The submit, status and result snippets of fal's page for Ideogram Character, one after the other, with a picture
// and a prompt of our own.
import { fal } from "@fal-ai/client";
import { picture } from "./pictures.mjs";

const referenceImageUrl = await fal.storage.upload(await picture("person.png"));

const { request_id } = await fal.queue.submit("fal-ai/ideogram/character", {
  input: {
    prompt: "the same woman reading on a train",
    reference_image_urls: [referenceImageUrl],
  },
  webhookUrl: "https://optional.webhook.url/for/results",
});

const requestId = request_id;

const status = await fal.queue.status("fal-ai/ideogram/character", {
  requestId,
  logs: true,
});

const result = await fal.queue.result("fal-ai/ideogram/character", {
  requestId,
});
console.log(result.data);
console.log(result.requestId);

console.log(JSON.stringify({ request_id, status, result }));
