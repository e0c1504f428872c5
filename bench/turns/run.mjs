/**
 * Chat turns without the model, of 64 clients: the session is created if it is new, the question is appended, the last 20
 * messages are read, and the answer is appended. Ours go over HTTP to the built service; the memories of agent frameworks
 * run in this process, which spares them that. Each is used as its documentation says, with its own defaults.
 */
import { randomUUID } from 'node:crypto';
import { startServer } from '../support/database.mjs';
import { Connection, request } from '../support/http.mjs';
import { CONTENT } from '../support/messages.mjs';
import { startService } from '../support/process.mjs';
import { median, rate, ratio, sideBySide, sleep } from '../support/stats.mjs';

const CLIENTS = 64;
const TURNS_PER_SESSION = 10;
const READ = 20;
const ROUNDS = 5;
const SECONDS = 5;
const WANTED = 3;

/** A turn of each client, which begins a new session now and then. */
const turns = (turn) => {
  const sessions = Array.from({ length: CLIENTS }, () => ({ id: '', left: 0 }));
  return (client) => {
    const session = sessions[client];
    if (session.left === 0) Object.assign(session, { id: randomUUID(), left: TURNS_PER_SESSION });
    session.left -= 1;
    return turn(session.id, client);
  };
};

async function colloquy(server) {
  const service = await startService(await server.database('ours'), { env: { MAX_SESSIONS: '1000000' } });
  const connections = await Promise.all(Array.from({ length: CLIENTS }, () => Connection.open(service.url)));
  const send = async (client, ...asked) => {
    const { status, body } = await connections[client].send(request(...asked));
    if (status >= 300) throw new Error(`${asked.slice(0, 2).join(' ')}: ${status} ${body}`);
    return body;
  };
  const turn = turns(async (id, client) => {
    const messages = `/v1/sessions/${id}/messages`;
    await send(client, 'POST', '/v1/sessions', { id });
    await send(client, 'POST', messages, { role: 'user', content: CONTENT });
    JSON.parse(await send(client, 'GET', `${messages}?order=desc&limit=${READ}`));
    await send(client, 'POST', messages, { role: 'assistant', content: CONTENT });
  });
  const stop = async () => {
    for (const connection of connections) connection.close();
    await service.stop();
  };
  return { turn, stop };
}

async function mastra(server) {
  const { Memory } = await import('@mastra/memory');
  const { PostgresStore } = await import('@mastra/pg');
  const storage = new PostgresStore({ connectionString: await server.emptyDatabase('mastra') });
  const memory = new Memory({ storage, options: { lastMessages: READ } });
  const resourceId = 'bench';
  const append = (threadId, role) =>
    memory.saveMessages({
      format: 'v2',
      messages: [
        {
          ...{ id: randomUUID(), threadId, resourceId, role, createdAt: new Date() },
          content: { format: 2, parts: [{ type: 'text', text: CONTENT }] },
        },
      ],
    });
  const turn = turns(async (threadId) => {
    if (!(await memory.getThreadById({ threadId }))) await memory.createThread({ resourceId, threadId });
    await append(threadId, 'user');
    await memory.query({ threadId, resourceId, selectBy: { last: READ } });
    await append(threadId, 'assistant');
  });
  return { turn, stop: () => storage.close() };
}

async function langgraph(server) {
  const { AIMessage, HumanMessage } = await import('@langchain/core/messages');
  const { END, MessagesAnnotation, START, StateGraph } = await import('@langchain/langgraph');
  const { PostgresSaver } = await import('@langchain/langgraph-checkpoint-postgres');
  const checkpointer = PostgresSaver.fromConnString(await server.emptyDatabase('langgraph'));
  await checkpointer.setup();
  const graph = new StateGraph(MessagesAnnotation)
    .addNode('model', () => ({ messages: [new AIMessage(CONTENT)] }))
    .addEdge(START, 'model')
    .addEdge('model', END)
    .compile({ checkpointer });
  const turn = turns((thread_id) =>
    graph.invoke({ messages: [new HumanMessage(CONTENT)] }, { configurable: { thread_id } }),
  );
  return { turn, stop: () => checkpointer.end() };
}

const server = await startServer();
const sides = {};
try {
  for (const [name, start] of Object.entries({ colloquy, mastra, langgraph }))
    sides[name] = await start(server);
  const rates = await sideBySide(
    ROUNDS,
    Object.fromEntries(
      Object.entries(sides).map(([name, { turn }]) => [name, () => rate(CLIENTS, SECONDS, turn)]),
    ),
  );
  for (const name of ['mastra', 'langgraph']) {
    const times = ratio(rates.colloquy, rates[name]);
    if (times < WANTED) process.exitCode = 1;
    console.log(
      `colloquy ${Math.round(median(rates.colloquy))} turns/s, ${name} ${Math.round(median(rates[name]))}: ` +
        `${times.toFixed(2)} times as many (wanted: ${WANTED})`,
    );
  }
} finally {
  for (const { stop } of Object.values(sides)) await stop();
  // The memories do not wait for the ends of their connections.
  await sleep(1_000);
  await server.stop();
}
