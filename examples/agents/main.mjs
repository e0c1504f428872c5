// A run of OpenAI Agents whose history Colloquy keeps. The model is the one that Colloquy is set up with.
//
//   npm start                                                  in one shell
//   COLLOQUY_URL=http://127.0.0.1:3000 node examples/agents/main.mjs
import { Agent, OpenAIProvider, Runner, tool } from '@openai/agents';
import { ColloquySession } from 'colloquy/agents';
import { z } from 'zod';

const { COLLOQUY_URL: url = 'http://127.0.0.1:3000', COLLOQUY_API_KEY: apiKey = 'none' } = process.env;

const weather = tool({
  name: 'weather',
  description: 'Tells how warm it is in a city',
  parameters: z.object({ city: z.string() }),
  execute: ({ city }) => `It is 18 °C in ${city}.`,
});
// `store: false`: the session keeps the history, so the service need not keep each call of the model as well.
const agent = new Agent({
  name: 'Guide',
  model: 'gpt-5-mini',
  tools: [weather],
  modelSettings: { store: false },
});
const runner = new Runner({
  modelProvider: new OpenAIProvider({ baseURL: `${url}/openai/v1`, apiKey }),
  tracingDisabled: true,
});

const session = new ColloquySession({ url, apiKey });
for (const question of ['How warm is it in Rome?', 'What did I ask?']) {
  const { finalOutput } = await runner.run(agent, question, { session });
  console.log(finalOutput);
}
console.log(`${await session.getSessionId()} has ${(await session.getItems()).length} items`);
