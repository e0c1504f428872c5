import { setTimeout as sleep } from 'node:timers/promises';
import { DatabaseUnavailable, isLockTimeout } from '../database/connection.js';
import { type EventLog } from '../event-store/log.js';
import { CopyRefused, TenantCopy } from '../event-store/tenant-copy.js';
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
  const work = new RunningMove(options, copy);
  let left = await from.log.absences.find(tenant);
  if (left && !left.hasDeparted) {
    // An earlier process was killed after it had closed the tenant. It is opened again, because what comes before it is
    // closed anew may take minutes.
    await from.log.absences.reopen(left.number);
    left = await from.log.absences.find(tenant);
  }
  await directory.announce(way);
  const announced = performance.now();
  let done: Done;
  if (left?.hasDeparted) done = await arriveLate(work);
  else {
    await work.begin();
    while ((await work.copyEvents()) > FEW);
    await copy.copyFormerPositions();
    await copy.copyKeyedResults();
    await copy.compare();
    onProgress('waiting', work.copied);
    const wait = announced + options.knownByAllMs - performance.now();
    if (wait > 0) await sleep(wait);
    done = await finish(work);
  }
  await settle(options);
  onProgress('opened', work.copied);
  return { ...way, ...done };
}

type Done = Pick<MovedTenant, 'events' | 'closedMs'>;

/** A move that is being made. */
class RunningMove {
  copied = 0;
  /** Of the absence from the other cell. */
  private absence = 0;
  /** Of the log of the other cell, when the copy began. */
  private generation = 0;

  constructor(
    readonly options: TenantMoveOptions,
    readonly copy: TenantCopy,
  ) {}

  /** Makes the tenant absent from the other cell. */
  async begin(): Promise<void> {
    const { tenant, to } = this.options;
    this.generation = to.log.generations.current;
    this.absence = await retried(() => to.log.absences.begin(tenant));
  }

  copyEvents(): Promise<number> {
    return this.copy.copyEvents((events) => {
      this.copied += events;
      this.options.onProgress?.('copying', this.copied);
    });
  }

  /** Copies what is left of a closed tenant, and compares. @returns the number of its events */
  async copyAll(): Promise<number> {
    await this.copyEvents();
    await this.copy.copyKeyedResults();
    for (const counter of this.options.counters) await this.copy.copyCounter(counter);
    return this.copy.compare();
  }

  async arrive(): Promise<void> {
    const { to, tenant } = this.options;
    if (await to.log.absences.arrive(this.absence, this.generation)) return;
    // Another process may have done it.
    if (!(await to.log.absences.isAbsent(tenant))) return;
    throw new CopyRefused(`${to.name} was set back in this moment, by a failover: take the move up again`);
  }
}

/** Goes on where an earlier process was killed after the tenant had departed: nothing is written for it any more. */
async function arriveLate(work: RunningMove): Promise<Done> {
  const { tenant, from, to } = work.options;
  if (await to.log.absences.isAbsent(tenant)) {
    await work.begin();
    const events = await work.copyAll();
    await work.arrive();
    return { events, closedMs: 0 };
  }
  const events = await work.copy.countCopied();
  if (events === undefined)
    throw new CopyRefused(`${tenant} has left ${from.name}, but it did not go to ${to.name}`);
  return { events, closedMs: 0 };
}

/** Closes the tenant until all of it is in the other cell. Where that takes too long it is opened again for a while. */
async function finish(work: RunningMove): Promise<Done> {
  const { tenant, from, behind, onProgress } = work.options;
  for (let tries = 1; tries <= MOST_TRIES; tries += 1) {
    await untilNear(behind);
    await work.copyEvents();
    // The tenant is not closed while the relay has a backlog, which could take longer than a tenant may be closed.
    const closed = (await isPublishedInTime(work)) ? await closeAndCopy(work) : undefined;
    if (closed) return closed;
    onProgress?.('waiting', work.copied);
    await sleep(PAUSE_MS);
    await checkOnItsWay(work.options);
  }
  throw new PlacementRefused(
    `what ${tenant} has written is not published to Kafka in time: look at the relay of ${from.name}`,
  );
}

async function isPublishedInTime({ options: { from, isPublished } }: RunningMove): Promise<boolean> {
  const ends = await from.log.lanes.ends();
  const began = performance.now();
  while (!(await isPublished(ends))) {
    if (performance.now() - began > CLOSED_MS) return false;
    await sleep(POLL_MS);
  }
  return true;
}

/** @returns undefined when it took too long, and the tenant is open again where it was */
async function closeAndCopy(work: RunningMove): Promise<Done | undefined> {
  const { tenant, from } = work.options;
  const began = performance.now();
  let absence: number | undefined;
  try {
    absence = await retried(() => from.log.absences.begin(tenant));
    work.options.onProgress?.('closed', work.copied);
    // `giveUpMove` changes the directory first and opens the tenant afterwards: it finds the tenant closed, or this finds
    // the directory changed.
    await checkOnItsWay(work.options);
    const enough = new AbortController();
    const steps = departure(work, absence, enough.signal);
    const events = await Promise.race([steps, sleep(CLOSED_MS, undefined, { ref: false })]);
    if (events === undefined) {
      enough.abort();
      steps.catch(() => undefined);
      if (await from.log.absences.reopen(absence)) return undefined;
    }
    // It has departed, so that there is no way back, or was opened by somebody else, of which the steps tell.
    return { events: events ?? (await steps), closedMs: Math.round(performance.now() - began) };
  } catch (error) {
    await reopenSurely(work.options, absence);
    throw error;
  }
}

/** Copies the rest of a closed tenant, and takes it to the other cell. */
async function departure(work: RunningMove, absence: number, enough: AbortSignal): Promise<number> {
  const { tenant, from, isPublished } = work.options;
  const ends = await from.log.lanes.ends();
  const events = await work.copyAll();
  while (!(await isPublished(ends))) {
    if (enough.aborted) throw wasGivenUp(tenant);
    await sleep(POLL_MS);
  }
  // This does nothing when it was opened again.
  if (!(await from.log.absences.depart(absence))) throw wasGivenUp(tenant);
  await work.arrive();
  return events;
}

const wasGivenUp = (tenant: string): PlacementRefused =>
  new PlacementRefused(`the move of ${tenant} was given up`);

async function checkOnItsWay({ directory, tenant, from, to }: TenantMoveOptions): Promise<void> {
  const entry = await directory.entry(tenant);
  if (entry?.cell !== from.name || entry.movingTo !== to.name) throw wasGivenUp(tenant);
}

/**
 * Opens a tenant again that this process has closed, or may have closed: the answer can be lost. Does nothing when it has
 * departed; then the move has to come to its end.
 */
async function reopenSurely({ tenant, from }: TenantMoveOptions, absence: number | undefined): Promise<void> {
  for (let tries = 1; ; tries += 1) {
    try {
      const number = absence ?? (await from.log.absences.find(tenant))?.number;
      if (number !== undefined) await from.log.absences.reopen(number);
      return;
    } catch (error) {
      if (!(error instanceof DatabaseUnavailable) || tries === MOST_TRIES) return;
      await sleep(LOCK_PAUSE_MS);
    }
  }
}

/** Says in the directory where the tenant is, which has departed and arrived. */
async function settle({ directory, tenant, from, to }: TenantMoveOptions): Promise<void> {
  const way = { tenant, from: from.name, to: to.name };
  for (;;) {
    const entry = await directory.entry(tenant);
    if (entry?.cell === to.name && entry.movingTo === null) return;
    // A process that comes too late must not end the move of another one.
    const left = await from.log.absences.find(tenant);
    if (!left?.hasDeparted || (await to.log.absences.isAbsent(tenant))) throw wasGivenUp(tenant);
    await directory.announce(way);
    await directory.settle(way, to.name);
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
  const way = { tenant, from: from.name, to: to.name };
  // A process that is about to close the tenant looks at the directory when it has.
  await directory.settle(way, from.name);
  const absence = await from.log.absences.find(tenant);
  if (!absence || (await from.log.absences.reopen(absence.number))) return;
  if (!(await from.log.absences.find(tenant))?.hasDeparted) return;
  // Unless it has arrived, and the directory says so.
  await directory.announce(way).catch(() => undefined);
  throw new PlacementRefused(`${tenant} has left ${from.name}: let the move come to its end`);
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
      if (!isLockTimeout(error) || tries === MOST_TRIES) throw error;
      await sleep(LOCK_PAUSE_MS);
    }
  }
}
