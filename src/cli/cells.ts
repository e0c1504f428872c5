import {
  CellDirectory,
  choose,
  type DirectoryEntry,
  KNOWN_BY_ALL_MS,
  PlacementRefused,
} from '../cells/cell-directory.js';
import { giveUpMove, type MovedTenant, moveTenant, type TenantMoveOptions } from '../cells/tenant-move.js';
import { FIRST_CELL, loadConfig } from '../config.js';
import { createPool } from '../database/connection.js';
import { migrate } from '../database/migrate.js';
import { TENANT_ID } from '../domain/tenant.js';
import { type EventLog } from '../event-store/log.js';
import { RelayCheckpoints } from '../kafka/relay-checkpoints.js';
import { migrations } from '../migrations.js';
import { openLog } from '../open-log.js';
import { lagOf } from '../projection-engine/projector.js';
import { projections } from '../read-models/projections.js';
import { activeSessions } from '../sessions/active-sessions.js';
import { cellsOfSettings, withDatabase } from './database.js';

/** Works with the directory, and with the name of every cell checked. */
function withDirectory<T>(
  cells: readonly string[],
  work: (directory: CellDirectory) => Promise<T>,
): Promise<T> {
  const known = cellsOfSettings();
  for (const cell of cells)
    if (!known.includes(cell))
      throw new PlacementRefused(`there is no cell ${cell}: the settings name ${known.join(', ')}`);
  return withDatabase({ create: false, cell: FIRST_CELL }, async ({ url }) => {
    await migrate(url, migrations);
    const pool = createPool(url, 'directory', { max: 2 });
    try {
      return await work(new CellDirectory(pool));
    } finally {
      await pool.end();
    }
  });
}

/** Opens the log of a cell for as long as the work takes. */
const withLog = <T>(cell: string, work: (log: EventLog) => Promise<T>): Promise<T> =>
  withDatabase({ create: false, cell }, async (database) => {
    await migrate(database.url, migrations);
    const log = await openLog(database);
    try {
      return await work(log);
    } finally {
      await log.close();
    }
  });

function checkTenant(tenant: string): void {
  if (!TENANT_ID.test(tenant)) throw new PlacementRefused(`${tenant} is no name of a tenant`);
}

/** Says where a tenant is going to live, before anything is written for it. */
export async function placeTenant(tenant: string, cell: string): Promise<void> {
  checkTenant(tenant);
  await withDirectory([cell], async (directory) => {
    const there = await directory.place(tenant, [{ name: cell, weight: 1 }]);
    if (there !== cell)
      throw new PlacementRefused(
        `${tenant} lives in ${there} already: colloquy tenants move ${tenant} ${cell}`,
      );
  });
}

export interface MoveOptions {
  readonly onProgress?: TenantMoveOptions['onProgress'];
}

/**
 * Moves a tenant to a cell, or takes up a move that was broken off. Returns undefined when it lives there.
 * @throws PlacementRefused, CopyRefused
 */
export async function moveTo(
  tenant: string,
  cell: string,
  { onProgress }: MoveOptions = {},
): Promise<MovedTenant | undefined> {
  checkTenant(tenant);
  return withDirectory([cell], async (directory) => {
    const home = await directory.home(tenant);
    if (!home)
      throw new PlacementRefused(
        `nothing was ever written for ${tenant}: colloquy tenants place ${tenant} ${cell} says where it is going to live`,
      );
    if (home.cell === cell) {
      if (home.movingTo !== null) throw onItsWay(tenant, home.movingTo);
      if (await withLog(cell, (log) => log.absences.isAbsent(tenant)))
        throw new PlacementRefused(
          `${tenant} lives in ${cell}, but is closed there: the database was set back behind its arrival. ` +
            'docs/operations.md says under "Moving a tenant" how to let it arrive again',
        );
      return undefined;
    }
    return withBoth(directory, { tenant, from: home.cell, to: cell }, (move) =>
      moveTenant({ ...move, ...(onProgress && { onProgress }) }),
    );
  });
}

/** The tenants that are on their way. */
export const listMoving = (): Promise<DirectoryEntry[]> =>
  withDirectory([], (directory) => directory.list({ moving: true }));

/** Leaves a tenant where it is that is on its way. @throws PlacementRefused when it is there already, or on no way */
export async function giveUp(tenant: string): Promise<string> {
  return withDirectory([], async (directory) => {
    const home = await directory.entry(tenant);
    if (!home || home.movingTo === null)
      throw new PlacementRefused(`${tenant} is not on its way to another cell`);
    await withBoth(directory, { tenant, from: home.cell, to: home.movingTo }, giveUpMove);
    return home.cell;
  });
}

/**
 * Moves all tenants of a cell to others, one after the other, by the weights of those.
 * @param onMoved gets each of them when it is there
 */
export async function drainCell(cell: string, onMoved: (moved: MovedTenant) => Promise<void>): Promise<void> {
  const { storage } = loadConfig({ env: process.env, cwd: process.cwd() });
  const others = [
    { name: FIRST_CELL, weight: storage.database?.weight ?? 1 },
    ...(storage.cells ?? []).map(({ name, weight }) => ({ name, weight })),
  ].filter(({ name, weight }) => name !== cell && weight > 0);
  if (others.length === 0) throw new PlacementRefused('there is no other cell whose weight is more than 0');
  const tenants = await withDirectory([cell], async (directory) => {
    // Those that are older than cells have no entry yet.
    if (cell === FIRST_CELL)
      for (const tenant of await withLog(cell, (log) => log.cuts.tenants())) await directory.home(tenant);
    return directory.list({ cell });
  });
  for (const { tenant, movingTo } of tenants) {
    const moved = await moveTo(tenant, movingTo ?? choose(tenant, others));
    if (moved) await onMoved(moved);
  }
}

const onItsWay = (tenant: string, cell: string): PlacementRefused =>
  new PlacementRefused(`${tenant} is on its way to ${cell}: give that up first, with --give-up`);

function withBoth<T>(
  directory: CellDirectory,
  { tenant, from, to }: { readonly tenant: string; readonly from: string; readonly to: string },
  work: (options: TenantMoveOptions) => Promise<T>,
): Promise<T> {
  const { kafka } = loadConfig({ env: process.env, cwd: process.cwd() });
  return withLog(from, (source) =>
    withLog(to, (target) => {
      const checkpoints = new RelayCheckpoints(source.pool, 'cli');
      return work({
        directory,
        tenant,
        from: { name: from, log: source },
        to: { name: to, log: target },
        knownByAllMs: KNOWN_BY_ALL_MS,
        counters: [activeSessions(tenant)],
        isPublished: async (ends) => {
          if (kafka.brokers.length === 0) return true;
          const positions = await checkpoints.positions();
          return ends.every((end, lane) => (positions.get(lane) ?? 0) >= end);
        },
        behind: async () =>
          Math.max(
            ...(await lagOf({ pool: target.pool, store: target, projections })).map(({ behind }) => behind),
          ),
      });
    }),
  );
}
