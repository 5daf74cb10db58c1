// Reads lines "<signature> <body>". Prints, as JSON, each line whose body differs from JSON.stringify(JSON.parse(body))
// or whose signature is not the HMAC-SHA256 of both, and finally the number of lines.
import { createHmac } from "node:crypto";
import { readFileSync } from "node:fs";

const secret = process.argv[2];
// Not node:readline, which also breaks lines at U+2028 and U+2029.
const lines = readFileSync(0, "utf8").split("\n").slice(0, -1);

lines.forEach((line, index) => {
  const [signature, body] = [line.slice(0, 64), line.slice(65)];
  let made;
  try {
    made = JSON.stringify(JSON.parse(body));
  } catch (error) {
    made = String(error);
  }
  const signatures = [body, made].map((text) => createHmac("sha256", secret).update(text).digest("hex"));
  const verified = signatures.every((text) => text === signature);
  if (made !== body || !verified) console.log(JSON.stringify({ index, made, verified }));
});
console.log(JSON.stringify({ lines: lines.length }));
