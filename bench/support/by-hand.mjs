import { pathToFileURL } from 'node:url';

const { default: fastify } = await import(pathToFileURL(process.argv[2]).href);
const app = fastify();
app.post('/v1/sessions/:id/messages', (request) => request.body);
await app.listen({ port: 0, host: '127.0.0.1' });
console.log(`listening on http://127.0.0.1:${app.server.address().port} `);
process.on('SIGTERM', () => process.exit(0));
