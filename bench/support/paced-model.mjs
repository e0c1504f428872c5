import { once } from 'node:events';
import { createServer } from 'node:http';

/**
 * A process of its own: a model that sends 50 tokens a second in each stream, as a real one may. Each token is due at a
 * fixed time after its request. The last message of the request says how many tokens are wanted (`12 tokens`). After
 * them the reply ends. If the message says `hold`, the reply stays open until the connection is closed.
 */
const TOKEN_MS = 20;
const piece = (delta, finish = null) =>
  `data: ${JSON.stringify({
    id: 'chatcmpl-bench',
    object: 'chat.completion.chunk',
    created: 1_700_000_000,
    model: 'bench',
    choices: [{ index: 0, delta, finish_reason: finish }],
  })}\n\n`;
const TOKEN = piece({ content: 'token ' });
const USAGE = '{"choices":[],"usage":{"prompt_tokens":10,"completion_tokens":10}}';
const END = `${piece({}, 'stop')}data: ${USAGE}\n\ndata: [DONE]\n\n`;

const server = createServer((request, response) => {
  const began = performance.now();
  let body = '';
  request.setEncoding('utf8').on('data', (text) => (body += text));
  request.once('end', () => {
    const said = JSON.parse(body).messages.at(-1).content;
    const tokens = Number(/(\d+) tokens/.exec(said)[1]);
    const holds = said.includes('hold');
    response.socket.setNoDelay(true);
    response.writeHead(200, { 'content-type': 'text/event-stream' });
    response.flushHeaders();
    let sent = 0;
    let timer;
    const dueOf = (token) => began + token * TOKEN_MS;
    const next = () => {
      // A timer may fire up to half a millisecond early.
      while (sent < tokens && performance.now() >= dueOf(sent + 1) - 0.5) {
        response.write(TOKEN);
        sent += 1;
      }
      if (sent < tokens) timer = setTimeout(next, dueOf(sent + 1) - performance.now());
      else if (!holds) response.end(END);
    };
    response.once('close', () => clearTimeout(timer));
    timer = setTimeout(next, dueOf(1) - performance.now());
  });
});
// The service keeps its connections between two rounds, and this server must not close them.
server.keepAliveTimeout = 600_000;
server.listen(0, '127.0.0.1');
await once(server, 'listening');
console.log(`listening on http://127.0.0.1:${server.address().port} `);
process.once('SIGTERM', () => process.exit(0));
