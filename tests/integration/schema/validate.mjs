// Reads {schema, checks: [{at, value}]} and validates each value against the part of the schema at that JSON pointer,
// with ajv from the given folder. Prints the errors of each, or null.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const require = createRequire(`${process.argv[2]}/`);
const Ajv = require("ajv/dist/2020").default;
const formats = require("ajv-formats").default;

const { schema, checks } = JSON.parse(readFileSync(0, "utf8"));
const ajv = new Ajv({ allErrors: true, strictSchema: true, strictTypes: false });
formats(ajv);
ajv.addSchema(schema, "body");
const answers = checks.map(({ at, value }) => {
  const validate = ajv.getSchema(`body${at}`);
  return validate(value) ? null : ajv.errorsText(validate.errors);
});
console.log(JSON.stringify(answers));
