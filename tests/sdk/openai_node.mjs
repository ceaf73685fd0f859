// The official npm `openai` package against a real gateway. Prints one line of JSON per case, so
// that the Python test which runs this can assert on each.
import OpenAI from "openai";

const [baseURL, apiKey, poorKey, slowKey] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0 });
const messages = [{ role: "user", content: "Hello, gateway!" }];

const cases = {
  async plain() {
    const answer = await client.chat.completions.create({ model: "sandbox", messages });
    return { model: answer.model, text: answer.choices[0].message.content };
  },
  async stream() {
    const stream = await client.chat.completions.create({ model: "sandbox", messages, stream: true });
    let text = "";
    let withUsage = 0;
    for await (const chunk of stream) {
      text += chunk.choices[0].delta.content ?? "";
      withUsage += chunk.usage ? 1 : 0;
    }
    return { text, withUsage };
  },
  async helper() {
    const stream = client.chat.completions.stream({ model: "sandbox", messages });
    const whole = await stream.finalChatCompletion();
    return { text: whole.choices[0].message.content };
  },
  async usage() {
    const options = { include_usage: true };
    const stream = await client.chat.completions.create({
      model: "sandbox", messages, stream: true, stream_options: options,
    });
    let usage = null;
    for await (const chunk of stream) usage = chunk.usage ?? usage;
    return { tokens: usage.total_tokens };
  },
  async embeddings() {
    const answer = await client.embeddings.create({ model: "sandbox-embedding", input: "one" });
    return { size: answer.data[0].embedding.length };
  },
  async models() {
    const ids = [];
    for await (const model of client.models.list()) ids.push(model.id);
    return { listed: ids.includes("sandbox") };
  },
};

const failing = {
  bad_request: (c) => c.chat.completions.create({ model: "sandbox", messages, max_tokens: -1 }),
  not_found: (c) => c.chat.completions.create({ model: "no-such-model", messages }),
  upstream: (c) => c.chat.completions.create({ model: "sandbox-error-503", messages }),
  too_large: (c) =>
    c.chat.completions.create({
      model: "sandbox", messages: [{ role: "user", content: "x".repeat(300000) }],
    }),
  unauthenticated: () => new OpenAI({ baseURL, apiKey: "wrong", maxRetries: 0 }).models.list(),
  // Default retries: a 402 must not be retried, which x-should-retry says.
  insufficient: () =>
    new OpenAI({ baseURL, apiKey: poorKey }).chat.completions.create({ model: "sandbox", messages }),
  async rate_limited() {
    const slow = new OpenAI({ baseURL, apiKey: slowKey, maxRetries: 0 });
    await slow.chat.completions.create({ model: "sandbox", messages });
    await slow.chat.completions.create({ model: "sandbox", messages });
  },
};

const print = (name, result) => console.log(JSON.stringify({ name, ...result }));

for (const [name, run] of Object.entries(cases)) print(name, await run());
for (const [name, run] of Object.entries(failing)) {
  try {
    await run(client);
    print(name, { raised: null });
  } catch (error) {
    print(name, { raised: error.constructor.name, status: error.status, code: error.code });
  }
}
