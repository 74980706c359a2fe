// What tests/clients/test_node.py has the openai package do. One line of JSON on standard output.
import OpenAI from "openai";

const [, , baseURL, model, question] = process.argv;
const client = new OpenAI({ baseURL, apiKey: "none", maxRetries: 0, timeout: 60_000 });
const asked = { model, messages: [{ role: "user", content: question }], temperature: 0 };

const whole = await client.chat.completions.create(asked);

let streamed = "";
let usage = null;
const options = { include_usage: true };
for await (const chunk of await client.chat.completions.create({ ...asked, stream: true, stream_options: options })) {
  streamed += chunk.choices[0]?.delta?.content ?? "";
  usage = chunk.usage ?? usage;
}

const helper = client.chat.completions.stream(asked);
const collected = await helper.finalContent();

// Left in the middle: the server has to notice.
const left = await client.chat.completions.create({ ...asked, stream: true, max_tokens: 900, ignore_eos: true });
for await (const chunk of left) {
  if (chunk.choices[0]?.delta?.content) break;
}

let refusal = null;
try {
  await client.chat.completions.create({ ...asked, temperature: 3 });
} catch (error) {
  refusal = { status: error.status, param: error.param, name: error.constructor.name };
}
console.log(JSON.stringify({ whole: whole.choices[0].message.content, streamed, usage, collected, refusal }));
