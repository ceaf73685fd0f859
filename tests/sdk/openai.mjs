// The official npm `openai` package: Chat Completions, Responses, embeddings, models, errors.
import assert from "node:assert/strict";
import OpenAI from "openai";
import {
  assertCity, beginning, city, key, origin, perform, poorKey, question, raises, result, slowKey,
  tools,
} from "./cases.mjs";

const baseURL = `${origin}/v1`;
const client = new OpenAI({ baseURL, apiKey: key, maxRetries: 0 });
const messages = [{ role: "user", content: question }];
const chatTools = Object.entries(tools).map(([name, parameters]) => ({
  type: "function", function: { name, description: name, parameters },
}));
const responseTools = Object.entries(tools).map(([name, parameters]) => ({
  type: "function", name, description: name, parameters, strict: true,
}));

const each = {
  async plain(named) {
    const answer = await client.chat.completions.create({ model: named("sandbox"), messages });
    assert.equal(answer.model, named("sandbox"));
    assert.match(answer.choices[0].message.content, beginning);
  },
  async stream(named) {
    const stream = await client.chat.completions.create({
      model: named("sandbox"), messages, stream: true,
    });
    let text = "";
    for await (const chunk of stream) {
      assert.equal(chunk.usage ?? null, null);
      text += chunk.choices[0].delta.content ?? "";
    }
    assert.match(text, beginning);
  },
  async stream_helper(named) {
    const stream = client.chat.completions.stream({
      model: named("sandbox"), messages, stream_options: { include_usage: true },
    });
    const whole = await stream.finalChatCompletion();
    assert.match(whole.choices[0].message.content, beginning);
    assert.ok(whole.usage.total_tokens > 0);
  },
  async tools_helper(named) {
    const stream = client.chat.completions.stream({
      model: named("sandbox-parallel-tools"), messages, tools: chatTools,
    });
    const whole = await stream.finalChatCompletion();
    const calls = whole.choices[0].message.tool_calls;
    assert.deepEqual(calls.map((call) => call.function.name), Object.keys(tools));
    for (const call of calls) JSON.parse(call.function.arguments);
    assert.equal(whole.choices[0].finish_reason, "tool_calls");
  },
  async run_tools(named) {
    const asked = [];
    const runner = client.chat.completions.runTools({
      model: named("sandbox-reasoning-tools"),
      messages,
      tools: Object.entries(tools).map(([name, parameters]) => ({
        type: "function",
        function: {
          name, description: name, parameters, parse: JSON.parse,
          function: (argument) => { asked.push(argument); return result; },
        },
      })),
    });
    assert.ok((await runner.finalContent()).includes(result));
    assert.equal(asked.length, 2);
  },
  async streamed_run_tools(named) {
    const runner = client.chat.completions.runTools({
      model: named("sandbox-tools"),
      messages,
      stream: true,
      tools: [{
        type: "function",
        function: {
          name: "get_weather", parameters: tools.get_weather, parse: JSON.parse,
          function: () => result,
        },
      }],
    });
    assert.ok((await runner.finalContent()).includes(result));
  },
  async shaped(named) {
    const stream = client.chat.completions.stream({
      model: named("sandbox-json"),
      messages,
      response_format: { type: "json_schema", json_schema: { name: "city", schema: city, strict: true } },
    });
    assertCity(JSON.parse(await stream.finalContent()));
  },
  async broken_stream(named) {
    const stream = client.chat.completions.stream({ model: named("sandbox-cut-40"), messages });
    await raises(() => stream.finalChatCompletion(), "APIError");
  },
  async response(named) {
    const answer = await client.responses.create({ model: named("sandbox"), input: question });
    assert.match(answer.output_text, beginning);
    assert.equal(answer.status, "completed");
  },
  async response_stream_helper(named) {
    const stream = client.responses.stream({ model: named("sandbox-reasoning"), input: question });
    const kinds = [];
    for await (const event of stream) kinds.push(event.type);
    const whole = await stream.finalResponse();
    assert.match(whole.output_text, beginning);
    assert.equal(kinds[0], "response.created");
    assert.equal(kinds.at(-1), "response.completed");
  },
  async response_tools(named) {
    const model = named("sandbox-reasoning-tools");
    const stream = client.responses.stream({ model, input: question, tools: responseTools });
    const first = await stream.finalResponse();
    const calls = first.output.filter((item) => item.type === "function_call");
    assert.deepEqual(calls.map((call) => call.name), Object.keys(tools));
    const after = await client.responses.create({
      model,
      previous_response_id: first.id,
      input: calls.map(({ call_id }) => ({ type: "function_call_output", call_id, output: result })),
      tools: responseTools,
    });
    assert.ok(after.output_text.includes(result));
  },
  async response_free_form(named) {
    const stream = client.responses.stream({
      model: named("sandbox-tools"), input: question, store: false,
      tools: [{ type: "custom", name: "apply_patch", description: "Applies a patch." }],
    });
    const whole = await stream.finalResponse();
    const call = whole.output.find((item) => item.type === "custom_tool_call");
    assert.equal(call.name, "apply_patch");
    assert.ok(call.input && !call.input.startsWith("{"));
  },
  async response_shaped(named) {
    const stream = client.responses.stream({
      model: named("sandbox-json"),
      input: question,
      text: { format: { type: "json_schema", name: "city", schema: city, strict: true } },
    });
    assertCity(JSON.parse((await stream.finalResponse()).output_text));
  },
  async response_incomplete(named) {
    const stream = client.responses.stream({
      model: named("sandbox-long"), input: question, max_output_tokens: 20,
    });
    const whole = await stream.finalResponse();
    assert.equal(whole.status, "incomplete");
    assert.equal(whole.incomplete_details.reason, "max_output_tokens");
  },
  async response_kept(named) {
    const made = await client.responses.create({ model: named("sandbox"), input: question });
    const again = await client.responses.retrieve(made.id);
    assert.equal(again.output_text, made.output_text);
    await client.responses.delete(made.id);
    await raises(() => client.responses.retrieve(made.id), "NotFoundError", 404);
  },
  async response_broken_stream(named) {
    const stream = client.responses.stream({ model: named("sandbox-cut-40"), input: question });
    await raises(() => stream.finalResponse(), "APIError");
  },
  async provider_error(named) {
    const model = named("sandbox-error-503");
    await raises(() => client.chat.completions.create({ model, messages }), "InternalServerError", 503);
    await raises(() => client.responses.create({ model, input: question }), "InternalServerError", 503);
  },
  async bad_request(named) {
    const model = named("sandbox-context-overflow");
    await assert.rejects(() => client.chat.completions.create({ model, messages }), {
      status: 400, code: "context_length_exceeded",
    });
  },
};

const once = {
  async embeddings() {
    for (const model of ["chat-sandbox-embedding", "gemini-sandbox-embedding"]) {
      const answer = await client.embeddings.create({ model, input: ["one", "two"] });
      assert.equal(answer.data.length, 2);
      assert.equal(typeof answer.data[0].embedding[0], "number");
    }
  },
  async models() {
    const ids = [];
    for await (const model of client.models.list()) ids.push(model.id);
    assert.ok(ids.includes("gemini-sandbox"));
  },
  unauthenticated: () =>
    raises(
      () => new OpenAI({ baseURL, apiKey: "wrong", maxRetries: 0 }).models.list(),
      "AuthenticationError", 401,
    ),
  not_found: () =>
    raises(
      () => client.chat.completions.create({ model: "no-such-model", messages }),
      "NotFoundError", 404,
    ),
  too_large: () =>
    raises(
      () =>
        client.chat.completions.create({
          model: "chat-sandbox", messages: [{ role: "user", content: "x".repeat(400000) }],
        }),
      "APIError", 413,
    ),
  // Default retries: a 402 must not be retried, which x-should-retry says.
  insufficient: () =>
    raises(
      () =>
        new OpenAI({ baseURL, apiKey: poorKey }).chat.completions.create({
          model: "gemini-sandbox", messages,
        }),
      "APIError", 402,
    ),
  async rate_limited() {
    const slow = new OpenAI({ baseURL, apiKey: slowKey, maxRetries: 0 });
    const ask = () => slow.chat.completions.create({ model: "chat-sandbox", messages });
    await ask();
    await raises(ask, "RateLimitError", 429);
  },
};

await perform(each, once);
