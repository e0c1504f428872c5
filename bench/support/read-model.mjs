import { connect } from './database.mjs';
import { product } from './product.mjs';

const { createPool } = product('dist/database/connection.js');
const { EventLog } = product('dist/event-store/log.js');
const { tableOf } = product('dist/projection-engine/projection.js');
const { ReadModels } = product('dist/projection-engine/strong-reads.js');
const { createTables } = product('dist/projection-engine/tables.js');
const { PLANS_BY_INDEX } = product('dist/database/server-settings.js');

/**
 * Creates the table of a read model in a database of its own. `write(events)` puts events into it as the projector
 * does; `models` reads it with the settings of the service.
 */
export async function openReadModel(server, projection) {
  const url = await server.database(projection.name);
  const database = await connect(url, 'bench', { statementMs: 600_000 });
  const log = await EventLog.open(url);
  const pool = createPool(url, 'bench', { settings: PLANS_BY_INDEX });
  await createTables(pool, [projection], log.laneCount);
  return {
    database,
    models: new ReadModels(pool, log),
    write: async (events) => {
      for (const { text, values } of await projection.apply(events, tableOf(projection), async () => [])) {
        await database.query(text, [...values]);
      }
    },
    close: async () => {
      await pool.end();
      await log.close();
      await database.end();
    },
  };
}
