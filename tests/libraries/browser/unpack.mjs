// Unpacks what the package of Chromium holds: the program, the libraries that it needs, and fonts.
import { createReadStream, createWriteStream, mkdirSync, writeFileSync } from "node:fs";
import { pipeline } from "node:stream/promises";
import { createBrotliDecompress } from "node:zlib";

const [from, to] = process.argv.slice(2);
mkdirSync(to, { recursive: true });
for (const [name, mode] of [["chromium", 0o755], ["al2023.tar", 0o644], ["fonts.tar", 0o644]]) {
  await pipeline(createReadStream(`${from}/${name}.br`), createBrotliDecompress(), createWriteStream(`${to}/${name}`, { mode }));
}
// Where the fonts are; the package's own file looks for them elsewhere.
writeFileSync(`${to}/font.conf`, '<fontconfig><dir prefix="relative">fonts</dir><cachedir prefix="xdg">fontconfig</cachedir></fontconfig>\n');
