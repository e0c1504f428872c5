import { randomUUID } from 'node:crypto';
import { connect } from './database.mjs';
import { product } from './product.mjs';
import { sleep, timed } from './stats.mjs';

const { createPool } = product('dist/database/connection.js');
const { RELAXED } = product('dist/database/server-settings.js');
const { Projector } = product('dist/projection-engine/projector.js');

/** A projector of one read model that has caught up. `rebuild` resolves to the seconds that making it anew took. */
export async function projecting(store, url, projection) {
  const leases = store.leases(randomUUID());
  const pool = createPool(url, 'projector', { settings: RELAXED });
  const projector = new Projector({
    store,
    pool,
    leases,
    projections: [projection],
    connect: () => connect(url, 'verify', { statementMs: 600_000 }),
    onProgress: () => undefined,
    onNotice: () => undefined,
    onError: (error) => {
      throw error;
    },
  });
  await projector.start();
  const status = async () => (await projector.status())[0];
  while ((await status()).behind > 0) await sleep(100);
  return {
    projector,
    rebuild: async () =>
      (await timed(async () => {
        await projector.rebuild(projection);
        while ((await status()).rebuild) await sleep(25);
      })) / 1_000,
    close: async () => {
      await projector.stop();
      await leases.close();
      await pool.end();
    },
  };
}
