// Runs before a script (`node --import`): sends what the client would send to fal's hosts to a sandbox.
// requestMiddleware is the client's own way to do so; a host that is not in the table fails.
import { fal } from "@fal-ai/client";

const hosts = {
  "queue.fal.run": process.env.FAL_QUEUE_URL,
  "rest.fal.ai": process.env.FAL_REST_URL,
};

fal.config({
  requestMiddleware: async (request) => {
    const { host, pathname, search } = new URL(request.url);
    return { ...request, url: new URL(pathname + search, hosts[host]).href };
  },
});
