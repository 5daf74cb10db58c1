// Reads a list of requests, {library, secret, headers, body}, with the official libraries in the given folder. Prints
// for each {read: the library's result} or {refused: the reason}.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const require = createRequire(`${process.argv[2]}/`);
const { Webhook } = require("standardwebhooks");
const { HTTP } = require("cloudevents");

const read = {
  standardwebhooks: ({ secret, headers, body }) => new Webhook(secret).verify(body, headers),
  cloudevents: ({ headers, body }) => {
    const event = HTTP.toEvent({ headers, body });
    event.validate();
    return event.toJSON();
  },
};

const requests = JSON.parse(readFileSync(0, "utf8"));
const answers = requests.map((request) => {
  try {
    return { read: read[request.library](request) };
  } catch (error) {
    return { refused: String(error) };
  }
});
console.log(JSON.stringify(answers));
