// The official npm `@google/genai` package: content, chats, functions, counting, embeddings, errors.
import assert from "node:assert/strict";
import { FunctionCallingConfigMode, GoogleGenAI } from "@google/genai";
import {
  assertCity, beginning, city, key, origin, perform, poorKey, question, raises, result, slowKey,
  tools,
} from "./cases.mjs";

const clientOf = (apiKey) => new GoogleGenAI({ apiKey, httpOptions: { baseUrl: origin } });
const client = clientOf(key);
const functionDeclarations = Object.entries(tools).map(([name, parametersJsonSchema]) => ({
  name, description: name, parametersJsonSchema,
}));

const each = {
  async plain(named) {
    const answer = await client.models.generateContent({ model: named("sandbox"), contents: question });
    assert.match(answer.text, beginning);
    assert.equal(answer.candidates[0].finishReason, "STOP");
    assert.ok(answer.usageMetadata.totalTokenCount > 0);
  },
  async stream(named) {
    const stream = await client.models.generateContentStream({
      model: named("sandbox"), contents: question,
    });
    let text = "";
    let last;
    for await (const chunk of stream) {
      text += chunk.text ?? "";
      last = chunk;
    }
    assert.match(text, beginning);
    assert.equal(last.candidates[0].finishReason, "STOP");
    assert.ok(last.usageMetadata.totalTokenCount > 0);
  },
  async functions_round_trip(named, provider) {
    const chat = client.chats.create({
      model: named("sandbox-reasoning-tools"),
      config: {
        tools: [{ functionDeclarations }],
        toolConfig: { functionCallingConfig: { mode: FunctionCallingConfigMode.AUTO } },
        thinkingConfig: { includeThoughts: true },
      },
    });
    const parts = [];
    for await (const chunk of await chat.sendMessageStream({ message: question })) {
      parts.push(...(chunk.candidates?.[0]?.content?.parts ?? []));
    }
    const calls = parts.map((part) => part.functionCall).filter(Boolean);
    assert.deepEqual(calls.map((call) => call.name), Object.keys(tools));
    if (provider !== "chat") assert.ok(parts.some((part) => part.thoughtSignature));
    const after = await chat.sendMessage({
      message: calls.map(({ id, name }) => ({ functionResponse: { id, name, response: { result } } })),
    });
    assert.ok(after.text.includes(result));
  },
  async shaped(named) {
    const answer = await client.models.generateContent({
      model: named("sandbox-json"), contents: question,
      config: { responseMimeType: "application/json", responseJsonSchema: city },
    });
    assertCity(JSON.parse(answer.text));
  },
  async counted(named) {
    const counted = await client.models.countTokens({ model: named("sandbox"), contents: question });
    assert.ok(counted.totalTokens > 0);
  },
  async broken_stream(named) {
    const stream = await client.models.generateContentStream({
      model: named("sandbox-cut-40"), contents: question,
    });
    await raises(async () => { for await (const _ of stream); }, "ApiError");
  },
  provider_error: (named) =>
    raises(
      () => client.models.generateContent({ model: named("sandbox-error-503"), contents: question }),
      "ApiError", 503,
    ),
  bad_request: (named) =>
    raises(
      () => client.models.generateContent({ model: named("sandbox-context-overflow"), contents: question }),
      "ApiError", 400,
    ),
};

const ask = (apiKey, model) =>
  clientOf(apiKey).models.generateContent({ model, contents: question });

const once = {
  async models() {
    const names = [];
    for await (const model of await client.models.list()) names.push(model.name);
    assert.ok(names.includes("models/chat-sandbox"));
  },
  async embeddings() {
    for (const model of ["chat-sandbox-embedding", "gemini-sandbox-embedding"]) {
      const answer = await client.models.embedContent({ model, contents: ["one", "two"] });
      assert.equal(answer.embeddings.length, 2);
      assert.equal(typeof answer.embeddings[0].values[0], "number");
    }
  },
  unauthenticated: () => raises(() => ask("wrong", "chat-sandbox"), "ApiError", 401),
  not_found: () => raises(() => ask(key, "no-such-model"), "ApiError", 404),
  insufficient: () => raises(() => ask(poorKey, "chat-sandbox"), "ApiError", 402),
  async rate_limited() {
    await ask(slowKey, "chat-sandbox");
    await raises(() => ask(slowKey, "chat-sandbox"), "ApiError", 429);
  },
};

await perform(each, once);
