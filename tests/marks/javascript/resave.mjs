// Saves a picture anew as PNG, JPEG or WebP, after the ending of the second name, with the metadata that it has.
import sharp from "sharp";

const [from, to] = process.argv.slice(2);
await sharp(from).keepMetadata().resize({ width: 160 }).toFile(to);
