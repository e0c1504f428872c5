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
/** Appends wait for as long as somebody waits for a lock that they need as well. */
const LOCK_PAUSE_MS = 500;
const LOCK_NOT_AVAILABLE = '55P03';
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
 * Moves a tenant to another cell while it is used. Where it lives is decided by facts that are each in the database that
 * they are about, so that a process which is killed at any point can be followed by another one that does the same again:
 *
 * 1. The directory says that the tenant is on its way: all nodes ask for it at each request.
 * 2. It is absent from the log of the other cell, which takes copies of its events but no others.
 * 3. When little is left to copy it becomes absent from its own log as well: no process can write for it. The rest is
 *    copied, and both are compared.
 * 4. It departs from its own log, for good. Until here the move can be given up.
 * 5. It arrives in the other log, and then the directory says so.
 *
 * At no time do both logs take its events. What it leaves behind stays, as a history that nobody writes to.
 *
 * @throws CopyRefused, PlacementRefused, DatabaseUnavailable; the tenant is where it was, and open, or the move has to be
 *   taken up again
 */
export async function moveTenant(options: TenantMoveOptions): Promise<MovedTenant> {
  const { directory, tenant, from, to, onProgress = () => undefined } = options;
  const way = { tenant, from: from.name, to: to.name };
  const copy = new TenantCopy(from.log.copied(), to.log.copied(), tenant);
  await directory.announce(way);
  const announced = performance.now();
  let copied = 0;
  const work: Work = {
    ...options,
    copy,
    absence: 0,
    copyEvents: () =>
      copy.copyEvents((events) => {
        copied += events;
        onProgress('copying', copied);
      }),
  };
  const left = await from.log.absences.find(tenant);
  let done = { events: 0, closedMs: 0 };
  if (left?.hasDeparted) {
    // An earlier process was killed after that.
    const arriving = await to.log.absences.find(tenant);
    done.events = await copy.compare();
    if (arriving) await to.log.absences.arrive(arriving.number);
  } else {
    work.absence = await retried(() => to.log.absences.begin(tenant));
    while ((await work.copyEvents()) > FEW);
    await copy.copyFormerPositions();
    await copy.copyKeyedResults();
    await copy.compare();
    onProgress('waiting', copied);
    const wait = left ? 0 : announced + options.knownByAllMs - performance.now();
    if (wait > 0) await sleep(wait);
    done = await finish(work, () => {
      onProgress('waiting', copied);
    });
  }
  await directory.settle(way, to.name);
  onProgress('opened', copied);
  for (const counter of options.counters) await from.log.counters.clear(counter);
  return { ...way, ...done };
}

/** A move that is being made. */
interface Work extends TenantMoveOptions {
  readonly copy: TenantCopy;
  /** Number of the absence from the other cell. */
  absence: number;
  readonly copyEvents: () => Promise<number>;
}

/** Closes the tenant until all of it is in the other cell. Where that takes too long it is opened again for a while. */
async function finish(work: Work, onWaiting: () => void): Promise<Pick<MovedTenant, 'events' | 'closedMs'>> {
  const { directory, tenant, from, to } = work;
  for (let tries = 1; tries <= MOST_TRIES; tries += 1) {
    await untilNear(work.behind);
    await work.copyEvents();
    const entry = await directory.entry(tenant);
    if (entry?.cell !== from.name || entry.movingTo !== to.name)
      throw new PlacementRefused(`the move of ${tenant} was given up`);
    const closed = await closeAndCopy(work);
    if (closed) return closed;
    onWaiting();
    await sleep(PAUSE_MS);
  }
  throw new PlacementRefused(
    `what ${tenant} has written is not published to Kafka in time: look at the relay of ${from.name}`,
  );
}

/** @returns undefined when it took too long, and the tenant is open again where it was */
async function closeAndCopy(
  work: Work,
): Promise<{ readonly events: number; readonly closedMs: number } | undefined> {
  const { tenant, from, to, copy, counters } = work;
  const began = performance.now();
  const absence = await retried(() => from.log.absences.begin(tenant));
  try {
    work.onProgress?.('closed', 0);
    const ends = await from.log.lanes.ends();
    await work.copyEvents();
    await copy.copyKeyedResults();
    for (const counter of counters) await copy.copyCounter(counter);
    const events = await copy.compare();
    while (!(await work.isPublished(ends))) {
      if (performance.now() - began > CLOSED_MS) {
        await from.log.absences.reopen(absence);
        return undefined;
      }
      await sleep(POLL_MS);
    }
    if (!(await from.log.absences.depart(absence)))
      throw new PlacementRefused(`the move of ${tenant} was given up`);
    await to.log.absences.arrive(work.absence);
    return { events, closedMs: Math.round(performance.now() - began) };
  } catch (error) {
    // This does nothing when it has departed: then the move has to come to its end.
    await from.log.absences.reopen(absence).catch(() => undefined);
    throw error;
  }
}

/**
 * Gives up a move that has not come to its end: the tenant stays where it is. What was copied stays in the other cell, for
 * the next time.
 * @throws PlacementRefused when the tenant has departed already
 */
export async function giveUpMove({
  directory,
  tenant,
  from,
  to,
}: Pick<TenantMoveOptions, 'directory' | 'tenant' | 'from' | 'to'>): Promise<void> {
  const absence = await from.log.absences.find(tenant);
  if (absence) await from.log.absences.reopen(absence.number);
  if ((await from.log.absences.find(tenant))?.hasDeparted)
    throw new PlacementRefused(`${tenant} has left ${from.name}: let the move come to its end`);
  await directory.settle({ tenant, from: from.name, to: to.name }, from.name);
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
async function retried<T>(work: () => Promise<T>): Promise<T> {
  for (let tries = 1; ; tries += 1) {
    try {
      return await work();
    } catch (error) {
      if ((error as { code?: unknown }).code !== LOCK_NOT_AVAILABLE || tries === MOST_TRIES) throw error;
      await sleep(LOCK_PAUSE_MS);
    }
  }
}
