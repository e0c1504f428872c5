// A conversation of OpenAI's SDK, kept by Colloquy: only the base URL is another one.
//
//   npm start                                                  in one shell
//   COLLOQUY_URL=http://127.0.0.1:3000 node examples/openai-sdk/main.mjs
import OpenAI from 'openai';

const { COLLOQUY_URL = 'http://127.0.0.1:3000', COLLOQUY_API_KEY = 'none' } = process.env;
const openai = new OpenAI({ baseURL: `${COLLOQUY_URL}/openai/v1`, apiKey: COLLOQUY_API_KEY });

const conversation = await openai.conversations.create({ metadata: { example: 'openai-sdk' } });
const first = await openai.responses.create({ conversation: conversation.id, input: 'What is React?' });
console.log(first.output_text);

const stream = openai.responses.stream({ conversation: conversation.id, input: 'And Vue?' });
stream.on('response.output_text.delta', ({ delta }) => process.stdout.write(delta));
const second = await stream.finalResponse();
process.stdout.write('\n');

// Whoever has the id of a response can go on from there; an older one becomes a branch.
const branch = await openai.responses.create({ previous_response_id: first.id, input: 'And Svelte?' });
console.log(branch.output_text);

const items = [];
for await (const item of openai.conversations.items.list(conversation.id, { order: 'asc' }))
  items.push(item.type);
console.log(`${conversation.id} has ${items.length} items; the last response is ${second.status}`);
