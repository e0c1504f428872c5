import { consume, postgresPlaces } from 'colloquy/consumer';
import { Pool } from 'pg';

/*
 * Sums up the daily token usage of each tenant and model in a table, from the events on Kafka. Each event is counted
 * exactly once.
 *
 *   npm run example:usage          starts Kafka, PostgreSQL and the service, sends a few chats, shows the table
 *
 *   KAFKA_BROKERS=host:port DATABASE_URL=postgres://… node examples/token-usage.mjs     uses what runs already
 *   COLLOQUY_URL, COLLOQUY_API_KEY: the service, for events that the topic no longer has
 */

const { KAFKA_BROKERS, DATABASE_URL, COLLOQUY_URL, COLLOQUY_API_KEY, KAFKA_TOPIC } = process.env;
if (!KAFKA_BROKERS || !DATABASE_URL) {
  console.error('KAFKA_BROKERS and DATABASE_URL must be set; `npm run example:usage` needs nothing.');
  process.exit(1);
}

const pool = new Pool({ connectionString: DATABASE_URL });
await pool.query(`
  create table if not exists token_usage (
    day date, tenant text, model text, input_tokens bigint not null, output_tokens bigint not null,
    primary key (day, tenant, model)
  )`);

const consumer = consume({
  kafka: { brokers: KAFKA_BROKERS.split(',') },
  groupId: 'token-usage',
  ...(KAFKA_TOPIC && { topic: KAFKA_TOPIC }),
  // The places are in the same database as the table, so that place and effect are committed together.
  places: postgresPlaces(pool, { consumer: 'token-usage' }),
  ...(COLLOQUY_URL && { api: { url: COLLOQUY_URL, apiKey: COLLOQUY_API_KEY } }),
  apply: async (events, tx) => {
    for (const { type, data, time, tenant } of events) {
      // Tokens are spent whether or not the answer was of use.
      if (!['GenerationCompleted', 'GenerationFailed', 'GenerationCancelled'].includes(type)) continue;
      if (!data.usage) continue;
      await tx.query(
        `insert into token_usage as total values ($1, $2, $3, $4, $5)
         on conflict (day, tenant, model) do update
           set input_tokens = total.input_tokens + $4, output_tokens = total.output_tokens + $5`,
        [time.slice(0, 10), tenant, data.model, data.usage.inputTokens, data.usage.outputTokens],
      );
    }
  },
});
console.log('Counting. Ctrl-C ends it.');

for (const signal of ['SIGINT', 'SIGTERM']) {
  process.once(signal, async () => {
    await consumer.stop();
    await pool.end();
  });
}
