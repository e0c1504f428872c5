import { FIRST_CELL } from '../config.js';
import { createPool } from '../database/connection.js';
import { migrate } from '../database/migrate.js';
import { type LogRange, LogRanges } from '../event-store/log-ranges.js';
import { migrations } from '../migrations.js';
import { withDatabase } from './database.js';

/** A check or a copy of a large table takes hours. */
const STATEMENT_MS = 24 * 3_600_000;

const withRanges = <T>(cell: string | undefined, work: (ranges: LogRanges) => Promise<T>): Promise<T> =>
  withDatabase({ create: false, cell: cell ?? FIRST_CELL }, async ({ url }) => {
    await migrate(url, migrations);
    const pool = createPool(url, 'ranges', { max: 2, statementMs: STATEMENT_MS });
    try {
      return await work(new LogRanges(pool));
    } finally {
      await pool.end();
    }
  });

export const listRanges = (cell: string | undefined): Promise<LogRange[]> =>
  withRanges(cell, (ranges) => ranges.list());

/** Lets each lane begin a new range, some positions ahead. Returns all ranges. */
export const beginRanges = (cell: string | undefined, ahead: number): Promise<LogRange[]> =>
  withRanges(cell, async (ranges) => {
    const lanes = new Set((await ranges.list()).map(({ lane }) => lane));
    for (const lane of lanes) await ranges.begin(lane, ahead);
    return ranges.list();
  });

/** Moves all full ranges to a tablespace that are not there. Each is told when it is moved, with its number of events. */
export const moveRanges = (
  cell: string | undefined,
  tablespace: string,
  onMoved: (range: LogRange, events: number) => Promise<void>,
): Promise<void> =>
  withRanges(cell, async (ranges) => {
    for (const range of await ranges.list())
      if (range.isFull && range.tablespace !== tablespace)
        await onMoved({ ...range, tablespace }, await ranges.move(range, tablespace));
  });
