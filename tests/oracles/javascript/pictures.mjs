// The pictures to send, from the folder that PICTURES names.
import { readFile } from "node:fs/promises";
import { join } from "node:path";

export const picture = async (name) =>
  new File([await readFile(join(process.env.PICTURES, name))], name, { type: "image/png" });
