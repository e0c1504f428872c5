import { WrittenSession } from '../support/messages.mjs';
import { product } from '../support/product.mjs';
import { median, rate, ratio, sideBySide, spread } from '../support/stats.mjs';

const { EventLog } = product('dist/event-store/log.js');

/** Measures appends to a log that a tenant has left, in comparison with one that none has left. */
export async function absences(server, { full }) {
  const [left, other] = [
    await EventLog.open(await server.database('absences')),
    await EventLog.open(await server.database('absences_none')),
  ];
  await left.absences.begin('away');
  let streams = 0;
  const appends = (store) => {
    const sessions = new Map();
    return async (writer) => {
      if (!sessions.has(writer)) sessions.set(writer, new WrittenSession(store, `session-${(streams += 1)}`));
      await sessions.get(writer).append();
    };
  };
  const rows = [];
  for (const writers of [1, 32, 256]) {
    const seconds = full ? 5 : 2;
    const rates = await sideBySide(full ? 9 : 7, {
      left: () => rate(writers, seconds, appends(left)),
      other: () => rate(writers, seconds, appends(other)),
    });
    rows.push({
      name: `appends of ${writers} writer${writers > 1 ? 's' : ''} to a log that a tenant has left`,
      ours: `${Math.round(median(rates.left))}/s`,
      other: `${Math.round(median(rates.other))}/s`,
      ratio: ratio(rates.left, rates.other),
      spread: Math.max(spread(rates.left), spread(rates.other)),
    });
  }
  await Promise.all([left.close(), other.close()]);
  return rows;
}
