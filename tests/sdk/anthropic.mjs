// The official npm `@anthropic-ai/sdk` package: messages, tools, thinking, counting, errors.
import assert from "node:assert/strict";
import Anthropic from "@anthropic-ai/sdk";
import {
  assertCity, beginning, city, key, origin, perform, poorKey, question, raises, result, slowKey,
  tools,
} from "./cases.mjs";

const baseURL = origin;
const client = new Anthropic({ baseURL, apiKey: key, maxRetries: 0 });
const messages = [{ role: "user", content: question }];
const max_tokens = 4000;
const offered = Object.entries(tools).map(([name, input_schema]) => ({
  name, description: name, input_schema,
}));

const textOf = (message) =>
  message.content.filter((block) => block.type === "text").map((block) => block.text).join("");
const callsOf = (message) => message.content.filter((block) => block.type === "tool_use");
const continued = (message) => [
  ...messages,
  { role: "assistant", content: message.content },
  {
    role: "user",
    content: callsOf(message).map(({ id }) => ({
      type: "tool_result", tool_use_id: id, content: result,
    })),
  },
];

const each = {
  async plain(named) {
    const message = await client.messages.create({ model: named("sandbox"), max_tokens, messages });
    assert.match(textOf(message), beginning);
    assert.equal(message.stop_reason, "end_turn");
    assert.ok(message.usage.input_tokens > 0);
  },
  async stream_helper(named) {
    const stream = client.messages.stream({ model: named("sandbox"), max_tokens, messages });
    const pieces = [];
    stream.on("text", (piece) => pieces.push(piece));
    const whole = await stream.finalMessage();
    assert.ok(pieces.length > 1);
    assert.match(pieces.join(""), beginning);
    assert.equal(textOf(whole), pieces.join(""));
    assert.ok(whole.usage.input_tokens > 0 && whole.usage.output_tokens > 0);
  },
  async tools_round_trip(named) {
    const model = named("sandbox-parallel-tools");
    const first = await client.messages
      .stream({ model, max_tokens, messages, tools: offered })
      .finalMessage();
    assert.equal(first.stop_reason, "tool_use");
    assert.deepEqual(callsOf(first).map((call) => call.name), Object.keys(tools));
    assert.deepEqual(Object.keys(callsOf(first)[0].input).sort(), ["city", "days"]);
    const after = await client.messages.create({
      model, max_tokens, messages: continued(first), tools: offered,
    });
    assert.ok(textOf(after).includes(result));
  },
  async thinking_round_trip(named, provider) {
    const asked = {
      model: named("sandbox-reasoning-tools"), max_tokens, tools: offered,
      thinking: { type: "adaptive", display: "summarized" },
    };
    const first = await client.messages.stream({ ...asked, messages }).finalMessage();
    assert.equal(first.content[0].type, "thinking");
    // Chat Completions is the only protocol without signatures.
    if (provider !== "chat") assert.ok(first.content.some((block) => block.signature));
    const after = await client.messages.create({ ...asked, messages: continued(first) });
    assert.ok(textOf(after).includes(result));
  },
  async shaped(named) {
    const message = await client.messages.create({
      model: named("sandbox-json"), max_tokens, messages,
      output_config: { format: { type: "json_schema", schema: city } },
    });
    assertCity(JSON.parse(textOf(message)));
  },
  async counted(named) {
    const counted = await client.messages.countTokens({ model: named("sandbox"), messages });
    assert.ok(counted.input_tokens > 0);
  },
  async broken_stream(named) {
    const stream = client.messages.stream({ model: named("sandbox-cut-40"), max_tokens, messages });
    await raises(() => stream.finalMessage(), "APIError");
  },
  provider_error: (named) =>
    assert.rejects(
      () => client.messages.create({ model: named("sandbox-error-503"), max_tokens, messages }),
      { status: 503 },
    ),
  bad_request: (named) =>
    assert.rejects(
      () => client.messages.create({ model: named("sandbox-context-overflow"), max_tokens, messages }),
      (error) => error.status === 400 && error.message.includes("prompt is too long"),
    ),
};

const ask = (options, model) =>
  new Anthropic({ baseURL, ...options }).messages.create({ model, max_tokens: 100, messages });

const once = {
  async models() {
    const ids = [];
    for await (const model of client.models.list({ limit: 50 })) ids.push(model.id);
    assert.ok(ids.includes("gemini-sandbox"));
  },
  unauthenticated: () =>
    raises(() => ask({ apiKey: "wrong", maxRetries: 0 }, "chat-sandbox"), "AuthenticationError", 401),
  not_found: () =>
    raises(() => ask({ apiKey: key, maxRetries: 0 }, "no-such-model"), "NotFoundError", 404),
  // Default retries: a 402 must not be retried, which x-should-retry says.
  insufficient: () =>
    assert.rejects(() => ask({ apiKey: poorKey }, "gemini-sandbox"), { status: 402 }),
  async rate_limited() {
    const options = { apiKey: slowKey, maxRetries: 0 };
    await ask(options, "chat-sandbox");
    await raises(() => ask(options, "chat-sandbox"), "RateLimitError", 429);
  },
};

await perform(each, once);
