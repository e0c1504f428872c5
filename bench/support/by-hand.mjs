/**
 * What a team would write by hand: a bare Fastify with `pg`, the defaults of both, and prepared statements. Its reads
 * are of the tables of the service, of the same rows; its appends go to tables of its own.
 */
import { randomUUID } from 'node:crypto';
import { pathToFileURL } from 'node:url';

const [fastifyEntry, pgEntry] = process.argv.slice(2);
const { default: fastify } = await import(pathToFileURL(fastifyEntry).href);
const { default: pg } = await import(pathToFileURL(pgEntry).href);
const { DATABASE_URL, SESSIONS_TABLE, HISTORY_TABLE } = process.env;
const app = fastify();

app.post('/echo', (request) => request.body);

if (DATABASE_URL) {
  const pool = new pg.Pool({ connectionString: DATABASE_URL });
  await pool.query(`
    create schema if not exists by_hand;
    create table if not exists by_hand.session (id text primary key, version int not null, updated_at timestamptz not null);
    create table if not exists by_hand.message (
      session_id text not null, version int not null, id uuid not null, created_at timestamptz not null,
      message jsonb not null, primary key (session_id, version)
    )`);

  app.get('/v1/sessions/:id', async ({ params }) => {
    const { rows } = await pool.query({
      name: 'session',
      text: `select * from ${SESSIONS_TABLE} where tenant = $1 and session_id = $2`,
      values: ['default', params.id],
    });
    return rows[0];
  });

  app.get('/v1/sessions/:id/messages', async ({ params, query }) => {
    const { rows } = await pool.query({
      name: 'messages',
      text: `select message from ${HISTORY_TABLE}
             where tenant = $1 and session_id = $2 and message is not null order by version desc limit $3`,
      values: ['default', params.id, Number(query.limit)],
    });
    return { data: rows.map(({ message }) => message) };
  });

  app.get('/v1/sessions', async ({ query }) => {
    const { rows } = await pool.query({
      name: 'sessions',
      text: `select * from ${SESSIONS_TABLE} where tenant = $1 and status = 'active' order by created_at, session_id limit $2`,
      values: ['default', Number(query.limit)],
    });
    return { data: rows };
  });

  app.post('/v1/sessions', async ({ body }) => {
    await pool.query('insert into by_hand.session values ($1, 0, now()) on conflict do nothing', [body.id]);
    return body;
  });

  // A transaction per message: the lock of the session's row gives the order.
  app.post('/v1/sessions/:id/messages', async ({ params, body }, reply) => {
    const client = await pool.connect();
    try {
      await client.query('begin');
      const { rows } = await client.query({
        name: 'next',
        text: 'update by_hand.session set version = version + 1, updated_at = now() where id = $1 returning version',
        values: [params.id],
      });
      const [session] = rows;
      const id = randomUUID();
      await client.query({
        name: 'message',
        text: 'insert into by_hand.message values ($1, $2, $3, now(), $4)',
        values: [params.id, session.version, id, JSON.stringify(body)],
      });
      await client.query('commit');
      reply.status(201);
      return { id, version: session.version };
    } catch (error) {
      await client.query('rollback');
      throw error;
    } finally {
      client.release();
    }
  });
}

await app.listen({ port: 0, host: '127.0.0.1' });
console.log(`listening on http://127.0.0.1:${app.server.address().port} `);
process.on('SIGTERM', () => process.exit(0));
