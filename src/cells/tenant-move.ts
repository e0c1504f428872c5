import { setTimeout as sleep } from 'node:timers/promises';
import { type EventLog } from '../event-store/log.js';
import { TenantCopy } from '../event-store/tenant-copy.js';
import { type CellDirectory, PlacementRefused } from './cell-directory.js';

/** A tenant may be closed for so long; if more has to be waited for, it is opened again, and closed later. */
const CLOSED_MS = 1_500;
/** Between two tries to close it. */
const PAUSE_MS = 1_000;
const POLL_MS = 20;
/** Without a node that runs, nothing is read or published, and nobody waits for it either. */
const STANDSTILL_MS = 10_000;
const MOST_TRIES = 60;
/** Events that may be left to copy, or to be read by the read models, when it is closed. */
const FEW = 500;

export interface TenantMoveOptions {
  readonly directory: CellDirectory;
  readonly tenant: string;
  readonly from: { readonly name: string; readonly log: EventLog };
  readonly to: { readonly name: string; readonly log: EventLog };
  /** After so long every node knows that the tenant is on its way: `KNOWN_BY_ALL_MS`. */
  readonly knownByAllMs: number;
  /** The counters of the tenant. */
  readonly counters: readonly string[];
  /**
   * Whether everything up to these positions, by lane, has been published from the cell that the tenant leaves. What comes
   * after is published from the other cell, and must come later.
   */
  readonly isPublished: (ends: readonly number[]) => Promise<boolean>;
  /** How many events the read models of the other cell have still to take in. */
  readonly behind: () => Promise<number>;
  /** Told what is being done, and how many events have been copied. */
  readonly onProgress?: (step: 'copying' | 'waiting' | 'closed' | 'opened', events: number) => void;
}

export interface MovedTenant {
  readonly tenant: string;
  readonly from: string;
  readonly to: string;
  /** Of the tenant, with those that were there before. */
  readonly events: number;
  /** For how long it took no writes; 0 when an earlier process had closed it. */
  readonly closedMs: number;
}

/**
 * Moves a tenant to another cell while it is used. Where it lives is decided by three facts, each in the database that it
 * is about, so that a process which is killed at any point can be followed by another one that does the same again:
 *
 * 1. The directory says that the tenant is on its way: all nodes ask for it at each request.
 * 2. It is absent from the log of the other cell, which takes copies of its events but no others.
 * 3. When little is left to copy it becomes absent from its own log as well: no process can write for it. The rest is
 *    copied, and everything compared.
 * 4. It is at home in the other log, and then the directory says so.
 *
 * At no time do both logs take its events. What it leaves behind stays, as a history that nobody writes to.
 *
 * @throws CopyRefused, PlacementRefused, DatabaseUnavailable; the tenant is where it was, and open
 */
export async function moveTenant(options: TenantMoveOptions): Promise<MovedTenant> {
  const { directory, tenant, from, to, onProgress = () => undefined } = options;
  const copy = new TenantCopy(from.log.copied(), to.log.copied(), tenant);
  await directory.announce({ tenant, cell: from.name, movingTo: null }, to.name);
  const announced = performance.now();
  const wasClosed = await from.log.absences.isAbsent(tenant);
  // An earlier process was killed between opening it there and saying so.
  const isThere = wasClosed && !(await to.log.absences.isAbsent(tenant));
  if (!isThere) await retried(() => to.log.absences.begin(tenant));

  let copied = 0;
  const copyEvents = (): Promise<number> =>
    copy.copyEvents((events) => {
      copied += events;
      onProgress('copying', copied);
    });
  let events = 0;
  let closedMs = 0;
  if (!isThere) {
    while ((await copyEvents()) > FEW);
    await copy.copyFormerPositions();
    await copy.copyKeyedResults();
    events = await copy.compare();
    onProgress('waiting', copied);
    const wait = wasClosed ? 0 : announced + options.knownByAllMs - performance.now();
    if (wait > 0) await sleep(wait);
    for (let tries = 1; ; tries += 1) {
      await untilNear(options.behind);
      await copyEvents();
      const closed = await closeAndFinish(options, copy, copyEvents);
      if (closed) {
        ({ closedMs } = closed);
        events = closed.events;
        break;
      }
      if (tries === MOST_TRIES)
        throw new PlacementRefused(
          `what ${tenant} has written is not published to Kafka in time: look at the relay of ${from.name}`,
        );
      onProgress('waiting', copied);
      await sleep(PAUSE_MS);
    }
  } else events = await copy.compare();
  await directory.settle(tenant, to.name);
  onProgress('opened', copied);
  for (const counter of options.counters) await from.log.counters.clear(counter);
  return { tenant, from: from.name, to: to.name, events, closedMs: wasClosed ? 0 : closedMs };
}

/**
 * Gives up a move that has not come to its end: the tenant stays where it is. What was copied stays in the other cell, for
 * the next time.
 * @throws PlacementRefused when the tenant is in the other cell already
 */
export async function giveUpMove({
  directory,
  tenant,
  from,
  to,
}: Pick<TenantMoveOptions, 'directory' | 'tenant' | 'from' | 'to'>): Promise<void> {
  await reopen(tenant, from.log, to.log);
  await directory.settle(tenant, from.name);
}

/** @returns undefined when it took too long, and the tenant is open again where it was */
async function closeAndFinish(
  { tenant, from, to, counters, isPublished, onProgress }: TenantMoveOptions,
  copy: TenantCopy,
  copyEvents: () => Promise<number>,
): Promise<{ events: number; closedMs: number } | undefined> {
  const began = performance.now();
  try {
    await retried(() => from.log.absences.begin(tenant));
    onProgress?.('closed', 0);
    const ends = await from.log.lanes.ends();
    await copyEvents();
    await copy.copyKeyedResults();
    for (const counter of counters) await copy.copyCounter(counter);
    const events = await copy.compare();
    while (!(await isPublished(ends))) {
      if (performance.now() - began > CLOSED_MS) {
        await reopen(tenant, from.log, to.log);
        return undefined;
      }
      await sleep(POLL_MS);
    }
    await to.log.absences.end(tenant);
    return { events, closedMs: Math.round(performance.now() - began) };
  } catch (error) {
    // Where the end was committed although its answer was lost, the tenant stays closed here, and is moved on by the next
    // process.
    await reopen(tenant, from.log, to.log).catch(() => undefined);
    throw error;
  }
}

/** Opens the tenant where it was, unless it is open in the other cell. */
async function reopen(tenant: string, from: EventLog, to: EventLog): Promise<void> {
  if (!(await to.absences.isAbsent(tenant)) && (await from.absences.isAbsent(tenant)))
    throw new PlacementRefused(`${tenant} is at home in the other cell already: let the move come to its end`);
  await from.absences.end(tenant);
}

/** Waits until the read models have little left to take in, or stand still. */
async function untilNear(behind: () => Promise<number>): Promise<void> {
  let least = Infinity;
  let since = performance.now();
  for (;;) {
    const left = await behind();
    if (left <= FEW) return;
    if (left < least) [least, since] = [left, performance.now()];
    else if (performance.now() - since > STANDSTILL_MS) return;
    await sleep(POLL_MS);
  }
}

/** A long commit, as of an import, may hold a lane for longer than one waits for it. */
async function retried(work: () => Promise<void>): Promise<void> {
  const LOCK_NOT_AVAILABLE = '55P03';
  for (let tries = 1; ; tries += 1) {
    try {
      await work();
      return;
    } catch (error) {
      if ((error as { code?: unknown }).code !== LOCK_NOT_AVAILABLE || tries === 30) throw error;
      await sleep(PAUSE_MS);
    }
  }
}

