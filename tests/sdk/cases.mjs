// What the scripts of the three npm SDKs share: the question, the tools, and how cases are run.
// Each case asserts for itself; one line of JSON says how it went, which a Python test looks at.
import assert from "node:assert/strict";

export const [origin, key, poorKey, slowKey] = process.argv.slice(2);
export const providers = ["chat", "responses", "messages", "gemini"];
export const question = "What is the weather like in Oslo?";
export const result = "rain, 7 degrees";
export const beginning = /^This is the sandbox of Farebox/;
export const png =
  "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==";

const object = (properties) => ({
  type: "object", properties, required: Object.keys(properties), additionalProperties: false,
});
export const tools = {
  get_weather: object({ city: { type: "string" }, days: { type: "integer" } }),
  get_time: object({ zone: { type: "string" } }),
};
export const city = object({ name: { type: "string" }, population: { type: "integer" } });

export function assertCity(value) {
  assert.deepEqual(Object.keys(value).sort(), ["name", "population"]);
}

// What `run` raises has to be of that class (by name) and have that status, where one is given.
export async function raises(run, name, status) {
  await assert.rejects(run, (error) => {
    assert.equal(error.constructor.name, name, String(error));
    if (status !== undefined) assert.equal(error.status, status);
    return true;
  });
}

const print = (name, outcome) => console.log(JSON.stringify({ name, ...outcome }));

async function attempt(name, run) {
  try {
    await run();
    print(name, { error: null });
  } catch (error) {
    print(name, { error: String(error?.stack ?? error).slice(0, 2000) });
  }
}

// `each` holds cases that take the name of a behaviour at a provider, `once` those that take none.
export async function perform(each, once) {
  for (const provider of providers) {
    const named = (behaviour) => `${provider}-${behaviour}`;
    for (const [name, run] of Object.entries(each)) {
      await attempt(`${provider}/${name}`, () => run(named, provider));
    }
  }
  for (const [name, run] of Object.entries(once)) await attempt(name, run);
}
