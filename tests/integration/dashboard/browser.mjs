// A headless Chromium that is controlled over standard input: one JSON command per line. For each it writes one line to
// standard output, with the result in `value` or the reason of a failure in `error`. It ends at the end of its standard
// input.
import { createInterface } from "node:readline";
import { createRequire } from "node:module";
import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const [folder] = process.argv.slice(2);
const { resolve } = createRequire(`${folder}/package.json`);
const { default: puppeteer } = await import(pathToFileURL(resolve("puppeteer-core")));
const axe = readFileSync(resolve("axe-core/axe.min.js"), "utf8");

const browser = await puppeteer.launch({
  // CHROMIUM names a browser for machines that the package does not support.
  executablePath: process.env.CHROMIUM ?? `${folder}/chromium/chromium`,
  headless: "shell",
  env: { ...process.env, LD_LIBRARY_PATH: `${folder}/chromium/lib`, FONTCONFIG_FILE: `${folder}/chromium/font.conf` },
  args: [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
  ],
});

let page;
let requests = [];
let complaints = [];

const does = {
  // A new page, in a fresh context.
  async open({ url, javascript = true, scheme = "light", width = 1200 }) {
    await page?.browserContext().close();
    page = await (await browser.createBrowserContext()).newPage();
    [requests, complaints] = [[], []];
    page.on("request", (request) => requests.push(`${request.method()} ${request.url()}`));
    page.on("console", (message) => { if (["error", "warn"].includes(message.type())) complaints.push(message.text()); });
    page.on("pageerror", (error) => complaints.push(String(error)));
    await page.setViewport({ width, height: 900 });
    await page.setJavaScriptEnabled(javascript);
    await page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: scheme }]);
    return (await page.goto(url)).status();
  },
  // Presses a key. With `leads` it waits for navigation to another page, and returns that page's status.
  async press({ key, leads = false }) {
    if (!leads) return page.keyboard.press(key);
    const [answer] = await Promise.all([page.waitForNavigation(), page.keyboard.press(key)]);
    return answer?.status();
  },
  async click({ selector, leads = true }) {
    if (!leads) return page.click(selector);
    const [answer] = await Promise.all([page.waitForNavigation(), page.click(selector)]);
    return answer?.status();
  },
  async evaluate({ script }) { return page.evaluate(script); },
  async reload() { return (await page.reload()).status(); },
  // The violations that axe finds of the WCAG 2.2 A and AA rules, and of its own best practices.
  async axe() {
    const { violations } = await page.evaluate(`${axe}; axe.run(document, { resultTypes: ["violations"] })`);
    return violations.map(({ id, help, nodes }) => `${id}: ${help}: ${nodes.map((node) => node.html).join(" ")}`);
  },
  async screenshot({ path, height }) {
    const { width } = page.viewport();
    await page.screenshot({ path, clip: { x: 0, y: 0, width, height } });
  },
  async heard() { return { requests, complaints }; },
};

for await (const line of createInterface({ input: process.stdin })) {
  const { what, ...how } = JSON.parse(line);
  const answer = await does[what](how).then((value) => ({ value: value ?? null }), (error) => ({ error: String(error) }));
  process.stdout.write(`${JSON.stringify(answer)}\n`);
}
await browser.close();
