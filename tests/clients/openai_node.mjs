// OpenAI's Node SDK against a running server: node openai_node.mjs http://127.0.0.1:8080
import assert from "node:assert/strict";
import OpenAI, { toFile } from "openai";
import { VERSION } from "openai/version";

const base = process.argv[2] ?? "http://127.0.0.1:8080";
const client = new OpenAI({ baseURL: `${base}/v1`, apiKey: "-", maxRetries: 0, timeout: 60_000 });
const model = (await client.models.list()).data[0].id;
const messages = [{ role: "user", content: "Tell me a story about a dog." }];
const chat = { model, messages, max_tokens: 24, temperature: 0, ignore_eos: true };
const background = {
  model, input: "Once", background: true, max_output_tokens: 16, ignore_eos: true,
};

const sleep = (ms) => new Promise((done) => setTimeout(done, ms));

async function until(look, isDone) {
  for (let tries = 0; tries < 600; tries++) {
    const seen = await look();
    if (isDone(seen)) return seen;
    await sleep(100);
  }
  throw new Error("waited in vain");
}

const checks = {
  async "models: list and retrieve"() {
    assert.equal((await client.models.retrieve(model)).id, model);
  },
  async "chat: whole"() {
    const answer = await client.chat.completions.create(chat);
    assert.ok(answer.choices[0].message.content.length > 0);
    assert.equal(answer.usage.completion_tokens, 24);
    assert.ok(answer._request_id);
  },
  async "chat: streamed text and usage are the whole answer's"() {
    const whole = await client.chat.completions.create(chat);
    const options = { include_usage: true };
    const stream = await client.chat.completions.create({
      ...chat, stream: true, stream_options: options,
    });
    let text = "";
    let usage = null;
    for await (const chunk of stream) {
      text += chunk.choices[0]?.delta.content ?? "";
      usage = chunk.usage ?? usage;
    }
    assert.equal(text, whole.choices[0].message.content);
    assert.equal(usage.completion_tokens, 24);
  },
  async "chat: the SDK's stream helper gathers the final completion"() {
    const final = await client.chat.completions.stream(chat).finalChatCompletion();
    assert.equal(final.choices[0].finish_reason, "length");
  },
  async "chat: n, logprobs, stop"() {
    const answer = await client.chat.completions.create({
      ...chat, n: 2, logprobs: true, top_logprobs: 2, stop: ["\n\n\n"],
    });
    assert.equal(answer.choices.length, 2);
    assert.equal(answer.choices[1].logprobs.content[0].top_logprobs.length, 2);
  },
  async "chat: structured output is parsed"() {
    const schema = {
      type: "object", properties: { yes: { type: "boolean" } },
      required: ["yes"], additionalProperties: false,
    };
    const answer = await client.chat.completions.parse({
      ...chat, max_tokens: 40,
      response_format: { type: "json_schema", json_schema: { name: "a", schema, strict: true } },
    });
    assert.equal(typeof JSON.parse(answer.choices[0].message.content).yes, "boolean");
  },
  async "chat: a stream that its reader leaves"() {
    const stream = await client.chat.completions.create({ ...chat, max_tokens: 500, stream: true });
    for await (const _ of stream) break;
    const load = async () => (await (await fetch(`${base}/load`)).json()).server_load;
    await until(load, (seen) => seen === 0);
  },
  async "completions: whole, echo with logprobs, streamed"() {
    const asked = { model, prompt: "Once upon a time", max_tokens: 8, temperature: 0 };
    const whole = await client.completions.create({ ...asked, echo: true, logprobs: 1 });
    assert.equal(whole.choices[0].logprobs.token_logprobs[0], null);
    assert.ok(whole.choices[0].text.startsWith("Once upon a time"));
    let text = asked.prompt;
    for await (const chunk of await client.completions.create({ ...asked, stream: true })) {
      text += chunk.choices[0].text;
    }
    assert.equal(text, whole.choices[0].text);
  },
  async "errors: what is refused has its class, param and code"() {
    const refused = client.chat.completions.create({ ...chat, temperature: 9 });
    await assert.rejects(refused, (error) =>
      error instanceof OpenAI.BadRequestError && error.param === "temperature");
    const unknown = client.chat.completions.create({ ...chat, model: "gpt-none" });
    await assert.rejects(unknown, (error) =>
      error instanceof OpenAI.NotFoundError && error.code === "model_not_found");
  },
  async "responses: whole, output_text, previous_response_id, input_items"() {
    const first = await client.responses.create({ model, input: "Once", max_output_tokens: 8 });
    assert.ok(first.output_text.length > 0);
    const second = await client.responses.create({
      model, input: "And then?", max_output_tokens: 8, previous_response_id: first.id,
    });
    const items = [];
    for await (const item of client.responses.inputItems.list(second.id)) items.push(item);
    assert.equal(items.length, 3);
  },
  async "responses: the SDK's stream helper gathers the final response"() {
    const stream = client.responses.stream({ model, input: "Once", max_output_tokens: 8 });
    const types = new Set();
    for await (const event of stream) types.add(event.type);
    const final = await stream.finalResponse();
    assert.ok(types.has("response.output_text.delta"));
    assert.ok(final.output_text.length > 0);
  },
  async "responses: in the background, polled, resumed, deleted"() {
    const begun = await client.responses.create(background);
    const ended = await until(
      () => client.responses.retrieve(begun.id),
      (seen) => !["queued", "in_progress"].includes(seen.status));
    assert.ok(["completed", "incomplete"].includes(ended.status));
    const numbers = [];
    const rest = await client.responses.retrieve(begun.id, { stream: true, starting_after: 1 });
    for await (const event of rest) numbers.push(event.sequence_number);
    assert.equal(numbers[0], 2);
    await client.responses.delete(begun.id);
    await assert.rejects(client.responses.retrieve(begun.id), OpenAI.NotFoundError);
  },
  async "responses: cancelled"() {
    const begun = await client.responses.create({ ...background, max_output_tokens: 1500 });
    await client.responses.cancel(begun.id);
    await until(
      () => client.responses.retrieve(begun.id), (seen) => seen.status === "cancelled");
  },
  async "files and batches: uploaded, run, read, deleted"() {
    const lines = ["a", "b"].map((name) => JSON.stringify({
      custom_id: name, method: "POST", url: "/v1/chat/completions", body: chat,
    }));
    const upload = await toFile(Buffer.from(lines.join("\n")), "in.jsonl");
    const file = await client.files.create({ file: upload, purpose: "batch" });
    const begun = await client.batches.create({
      input_file_id: file.id, endpoint: "/v1/chat/completions", completion_window: "24h",
    });
    const ended = await until(
      () => client.batches.retrieve(begun.id), (seen) => seen.status === "completed");
    assert.deepEqual({ ...ended.request_counts }, { total: 2, completed: 2, failed: 0 });
    const output = await (await client.files.content(ended.output_file_id)).text();
    assert.equal(output.trim().split("\n").length, 2);
    const seen = [];
    for await (const each of client.files.list()) seen.push(each.id);
    assert.ok(seen.includes(file.id));
    assert.equal((await client.files.delete(file.id)).deleted, true);
  },
};

let failed = 0;
console.log(`openai (Node) ${VERSION}, node ${process.version}`);
for (const [name, check] of Object.entries(checks)) {
  try {
    await check();
    console.log(`passed  ${name}`);
  } catch (error) {
    failed += 1;
    console.log(`FAILED  ${name}: ${error.stack}`);
  }
}
process.exit(failed ? 1 : 0);
