import { connect, startServer } from '../support/database.mjs';
import { WrittenSession } from '../support/messages.mjs';
import { product } from '../support/product.mjs';
import { median, rate, ratio, sideBySide } from '../support/stats.mjs';

/**
 * Measures what the index of the feed, which finds the events of a tenant, costs the appends: the log with and without
 * this index.
 */
const { EventLog } = product('dist/event-store/log.js');
const SESSION_LENGTH = 50;
const TENANTS = 100;

const server = await startServer();
const stores = [];
let streams = 0;
async function log(name, statement) {
  const url = await server.database(name);
  const client = await connect(url, 'bench');
  await client.query(statement);
  await client.end();
  const store = await EventLog.open(url);
  stores.push(store);
  return () => {
    const sessions = new Map();
    return async (writer) => {
      let own = sessions.get(writer);
      if (!own || own.length >= SESSION_LENGTH) {
        own = {
          session: new WrittenSession(store, `s-${(streams += 1)}`, `t${streams % TENANTS}`),
          length: 0,
        };
        sessions.set(writer, own);
      }
      own.length += 1;
      await own.session.append();
    };
  };
}
const INDEX = 'event_tenant on event (tenant, position)';
const withIndex = await log('with_index', `create index if not exists ${INDEX}`);
const without = await log('without_index', 'drop index if exists event_tenant');
for (const writers of [32, 256]) {
  const rates = await sideBySide(13, {
    ours: () => rate(writers, 2, withIndex()),
    theirs: () => rate(writers, 2, without()),
  });
  console.log(
    `${writers} writers: ${Math.round(median(rates.ours))}/s with the index, ${Math.round(median(rates.theirs))}/s without, ratio ${ratio(rates.ours, rates.theirs).toFixed(2)}`,
  );
}
await Promise.all(stores.map((store) => store.close()));
await server.stop();
