// Decompresses the *.br of a folder: node has brotli, Python has tar.
import { createReadStream, createWriteStream } from "node:fs";
import { pipeline } from "node:stream/promises";
import { createBrotliDecompress } from "node:zlib";

const [folder, target] = process.argv.slice(2);
for (const name of ["chromium", "al2023.tar", "fonts.tar", "swiftshader.tar"])
  await pipeline(createReadStream(`${folder}/${name}.br`), createBrotliDecompress(), createWriteStream(`${target}/${name}`));
