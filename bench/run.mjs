import { availableParallelism } from 'node:os';
import { parseArgs } from 'node:util';
import { absences } from './measures/absences.mjs';
import { access } from './measures/access.mjs';
import { appendRate } from './measures/append-rate.mjs';
import { away } from './measures/away.mjs';
import { cells } from './measures/cells.mjs';
import { databaseTime } from './measures/database-time.mjs';
import { doors } from './measures/doors.mjs';
import { httpAppends } from './measures/http-appends.mjs';
import { large } from './measures/large.mjs';
import { loneAppend } from './measures/lone-append.mjs';
import { longSession } from './measures/long-session.mjs';
import { move } from './measures/move.mjs';
import { notary } from './measures/notary.mjs';
import { oldSnapshot } from './measures/old-snapshot.mjs';
import { overload } from './measures/overload.mjs';
import { quietService } from './measures/quiet-service.mjs';
import { ranges } from './measures/ranges.mjs';
import { reads } from './measures/reads.mjs';
import { rebuild } from './measures/rebuild.mjs';
import { sealed } from './measures/sealed.mjs';
import { streaming } from './measures/streaming.mjs';
import { startServer } from './support/database.mjs';
import { judge, present } from './support/table.mjs';

const MEASURES = {
  rate: appendRate,
  lone: loneAppend,
  time: databaseTime,
  snapshot: oldSnapshot,
  http: httpAppends,
  ranges,
  reads,
  long: longSession,
  quiet: quietService,
  rebuild,
  streaming,
  doors,
  access,
  cells,
  move,
  absences,
  sealed,
  notary,
  away,
  overload,
  large,
};
/** Those that take too long for every day. */
const ONLY_FULL = ['large'];

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: { full: { type: 'boolean', default: false } },
});
const unknown = positionals.filter((name) => !(name in MEASURES));
if (unknown.length > 0) {
  console.error(`there is no ${unknown.join(', ')}; there are: ${Object.keys(MEASURES).join(', ')}`);
  process.exit(2);
}
const wanted =
  positionals.length > 0
    ? positionals
    : Object.keys(MEASURES).filter((name) => values.full || !ONLY_FULL.includes(name));

const server = await startServer();
for (const signal of ['SIGINT', 'SIGTERM']) {
  process.once(signal, () => void server.stop().then(() => process.exit(1)));
}
const rows = [];
try {
  for (const name of wanted) {
    process.stderr.write(`${name} …\n`);
    try {
      rows.push(...(await MEASURES[name](server, values)));
    } catch (error) {
      // The other measures may still succeed, so the run goes on.
      console.error(error);
      rows.push({ name, ours: 'broke off', pass: false });
    }
  }
} finally {
  await server.stop();
}
console.log(
  `PostgreSQL ${server.version}, Node.js ${process.versions.node}, ${availableParallelism()} processors\n`,
);
console.log(present(rows));
process.exit(rows.every((row) => judge(row) !== false) ? 0 : 1);
