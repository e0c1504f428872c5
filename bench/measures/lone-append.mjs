import { randomUUID } from 'node:crypto';
import { connect } from '../support/database.mjs';
import { message, WrittenSession } from '../support/messages.mjs';
import { product } from '../support/product.mjs';
import { median, sleep, timed } from '../support/stats.mjs';

const { EventLog } = product('dist/event-store/log.js');

/** Appends of one side in a row, so that each side finds its caches warm. */
const TURN = 25;

/**
 * Measures one append at a time, in comparison with a bare prepared INSERT of the same row into a table with the same
 * keys.
 */
export async function loneAppend(server, { full }) {
  const url = await server.database('lone');
  const store = await EventLog.open(url);
  const client = await connect(url, 'bench');
  await client.query(`
    create table bare (like event including defaults, primary key (lane, position));
    create index on bare (lane, tenant, stream_id, version);
    create index on bare (tenant, position)`);
  let position = 0;
  const insert = () => {
    position += 1;
    return client.query({
      name: 'bare',
      text: `insert into bare (lane, position, tenant, stream_id, version, incarnation, id, type, schema_version, time,
                               actor, correlation_id, causation_id, data, sealed, key_id)
             values ($1,$2,$3,$4,$5,$6,$7,$8,$9,colloquy_now(),$10,$11,$12,$13,$14,$15)`,
      values: [
        3,
        position,
        'default',
        'session-1',
        position,
        1,
        randomUUID(),
        'MessageAppended',
        1,
        'bench',
        randomUUID(),
        null,
        JSON.stringify(message()),
        null,
        null,
      ],
    });
  };
  const session = new WrittenSession(store, 'session-1');

  const ours = [];
  const bare = [];
  for (let turn = 0; turn < (full ? 160 : 60); turn += 1) {
    const warm = turn >= 4;
    for (let i = 0; i < TURN; i += 1) {
      const ms = await timed(() => session.append());
      if (warm) ours.push(ms);
    }
    // The append still notifies other nodes. The pause keeps that work out of the time of the INSERT.
    await sleep(15);
    for (let i = 0; i < TURN; i += 1) {
      const ms = await timed(insert);
      if (warm) bare.push(ms);
    }
  }
  await client.end();
  await store.close();
  return [
    {
      name: 'a lone append',
      ours: `${median(ours).toFixed(2)} ms`,
      other: `bare INSERT ${median(bare).toFixed(2)} ms`,
      ratio: median(ours) / median(bare),
      atMost: 1.5,
    },
  ];
}
