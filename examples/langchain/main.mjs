// A chain of LangChain whose history Colloquy keeps. Any chat model can take the place of the function.
//
//   npm start                                                  in one shell
//   COLLOQUY_URL=http://127.0.0.1:3000 node examples/langchain/main.mjs
import { RunnableLambda, RunnableWithMessageHistory } from '@langchain/core/runnables';
import { AIMessage, HumanMessage } from '@langchain/core/messages';
import { ColloquyChatMessageHistory } from 'colloquy/langchain';

const { COLLOQUY_URL: url = 'http://127.0.0.1:3000', COLLOQUY_API_KEY: apiKey } = process.env;

const model = RunnableLambda.from((messages) => new AIMessage(`I see ${messages.length} messages.`));
const chain = new RunnableWithMessageHistory({
  runnable: model,
  getMessageHistory: (sessionId) => new ColloquyChatMessageHistory({ url, apiKey, sessionId }),
});

const config = { configurable: { sessionId: 'langchain-example' } };
for (const text of ['Hello', 'Are you still there?']) {
  const { content } = await chain.invoke([new HumanMessage(text)], config);
  console.log(content);
}
const history = new ColloquyChatMessageHistory({ url, apiKey, sessionId: 'langchain-example' });
console.log(`langchain-example has ${(await history.getMessages()).length} messages`);
await history.clear();
