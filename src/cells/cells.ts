import { setMaxListeners } from 'node:events';
import { setTimeout as sleep } from 'node:timers/promises';
import type { FastifyRequest } from 'fastify';
import { type Registry } from 'prom-client';
import { type CellConfig, ConfigError, FIRST_CELL } from '../config.js';
import { TENANT_ID } from '../domain/tenant.js';
import { type Backend } from '../http/backend.js';
import { ApiError, invalidRequest } from '../http/problem.js';
import { CELL_HEADER, subjectOf } from '../http/subject.js';
import { type Unanswered } from '../http/unanswered.js';
import { type CellDirectory, type Weighted } from './cell-directory.js';
import { CellWatch, type WatchedCell } from './cell-watch.js';

/** A cell that runs in this process: a whole application on a database of its own. */
export interface Cell extends CellBasis {
  readonly backend: Backend;
  /** Whether its database answers and its read models are near the log. */
  isReady(): Promise<boolean>;
  /** Its metrics, with its name as a label. */
  readonly registry: Registry;
  close(): Promise<void>;
}

/** What is known of every cell, the first one too. */
export interface CellBasis {
  readonly absences: CellAbsences;
  readonly unanswered: Unanswered;
  /** Asks its database for a sign of life. Rejects when there is none in time. */
  readonly ask: (ms: number) => Promise<void>;
}

/** Which tenants are not at home in a cell, as its own database has it. */
export interface CellAbsences {
  isAbsent(tenant: string): Promise<boolean>;
  /** Reads them anew; who follows a tenant that has left is dropped, and comes again. */
  refresh(): Promise<void>;
}

export interface CellStatus extends Weighted {
  readonly status: 'ok' | 'unavailable';
}

/** What the settings say of cells. */
export interface CellSettings {
  readonly others: readonly CellConfig[];
  /** Of the first cell. */
  readonly firstWeight: number;
}

export interface CellsOptions {
  /** Starts a cell. What it throws is told to `onTrouble`, and it is tried again. */
  readonly start: (cell: CellConfig) => Promise<Cell>;
  readonly onTrouble: (cell: string, error: Error) => void;
}

/** So long a node waits for its cells before it serves without those that are away. */
const PATIENCE_MS = 5_000;
/** Between two tries to start a cell. */
const RETRY_MS = 1_000;
/** The same where the settings or the database have to be mended first, because the cell is another one or lacks rights. */
const MISTAKEN_RETRY_MS = 60_000;
/** So many are started at the same time. A hundred at once took so long that some had no connection in time (measured). */
const TOGETHER = 4;
/** After so long the next one may start as well: those that are away must not keep others waiting. */
const TURN_MS = 1_000;

/**
 * The cells of a deployment. The first one takes all requests, knows all callers, and has the directory; a request of a
 * tenant that lives elsewhere is given to the application of its cell. Nothing inside of an application knows of cells.
 */
export class Cells {
  private readonly running = new Map<string, Cell>();
  /** All cells, the first one first. */
  private weighted: readonly Weighted[] = [];
  private readonly starting = new Map<string, Promise<void>>();
  private readonly severalListeners: (() => void)[] = [];
  private readonly stopping = new AbortController();
  private freeTurns = TOGETHER;
  private readonly waitingForTurn: (() => void)[] = [];
  private directory: CellDirectory | undefined;
  private first: CellBasis | undefined;
  private readonly watch = new CellWatch(() => this.watched(), unavailable);

  constructor(private readonly options: CellsOptions) {
    // One for each cell that is away.
    setMaxListeners(0, this.stopping.signal);
  }

  /** Whether there are others than the first. */
  get areSeveral(): boolean {
    return this.weighted.length > 1;
  }

  /** Calls the listener when there are others than the first, at once if there are. */
  whenSeveral(listener: () => void): void {
    if (this.areSeveral) listener();
    else this.severalListeners.push(listener);
  }

  /** Starts the others, and waits for them for a while: one that is away must not keep this node from starting. */
  async begin(directory: CellDirectory, first: CellBasis, settings: CellSettings): Promise<void> {
    this.directory = directory;
    this.first = first;
    await this.use(settings);
  }

  /**
   * Starts cells that are new in the settings, and takes over their weights. To take one away, or to give it another
   * database, needs a restart.
   * @throws DatabaseUnavailable when the directory cannot be read
   */
  async use({ others, firstWeight }: CellSettings): Promise<void> {
    const { directory } = this;
    if (!directory || this.stopping.signal.aborted) return;
    // Before any tenant is looked for in it.
    if (!this.areSeveral && others.length > 0) {
      await directory.load(() => {
        this.refreshAbsences();
      });
    }
    const gone = this.weighted.slice(1).filter(({ name }) => !others.some((one) => one.name === name));
    if (others.length > 0) this.watch.begin();
    this.weighted = [
      { name: FIRST_CELL, weight: firstWeight },
      ...others.map(({ name, weight }) => ({ name, weight })),
      ...gone.map(({ name }) => ({ name, weight: 0 })),
    ];
    for (const cell of others) {
      if (!this.starting.has(cell.name)) this.starting.set(cell.name, this.start(cell));
    }
    if (this.areSeveral) for (const listener of this.severalListeners.splice(0)) listener();
    await this.whenStarted();
  }

  /** Closes the others. Each waits until it gets no more requests. */
  async close(): Promise<void> {
    this.stopping.abort();
    this.directory?.close();
    this.watch.close();
    await this.whenStarted();
    await Promise.all([...this.running.values()].map((cell) => cell.close()));
  }

  /** Waits for a while until none is being started. */
  private async whenStarted(): Promise<void> {
    const enough = new AbortController();
    const patience = sleep(PATIENCE_MS, undefined, { signal: enough.signal }).catch(() => undefined);
    await Promise.race([Promise.all(this.starting.values()), patience]);
    enough.abort();
  }

  /**
   * The application that answers a request that the first cell has admitted; undefined: the first cell.
   *
   * @throws ApiError `database-unavailable` for a cell that does not run, `invalid-request` for a name that no cell has
   */
  elsewhere(request: FastifyRequest): Backend | undefined | Promise<Backend | undefined> {
    if (!this.areSeveral) return undefined;
    const { url = '' } = request.routeOptions;
    const subject = subjectOf(url);
    if (subject === 'deployment') return undefined;
    if (subject === 'cell') {
      const named = request.headers[CELL_HEADER.toLowerCase()];
      return named === undefined ? undefined : this.backend(this.checked(named));
    }
    const tenant = tenantOf(request, url);
    // No tenant has such an id, which any cell says as well.
    if (tenant === undefined) return undefined;
    const known = this.directory?.remembered(tenant);
    if (known !== undefined) return this.backend(known);
    return this.look(this.directory, tenant, mayPlace(request)).then((cell) => this.backend(cell));
  }

  /** The others that run, by name. */
  others(): ReadonlyMap<string, Cell> {
    return this.running;
  }

  /** All others, whether or not they run. */
  async status(): Promise<CellStatus[]> {
    return Promise.all(
      this.weighted.slice(1).map(async (cell) => ({
        ...cell,
        status: (await this.running.get(cell.name)?.isReady()) ? ('ok' as const) : ('unavailable' as const),
      })),
    );
  }

  /** How many tenants live in each, by the name of the cell. @throws DatabaseUnavailable */
  async tenants(): Promise<ReadonlyMap<string, number>> {
    return (await this.directory?.count()) ?? new Map();
  }

  /** Of new tenants, the part that the first one gets. */
  get firstWeight(): number {
    return this.weighted[0]?.weight ?? 1;
  }

  private async look(
    directory: CellDirectory | undefined,
    tenant: string,
    isPlacing: boolean,
  ): Promise<string> {
    if (!directory) return FIRST_CELL;
    const last = directory.isLooking ? undefined : directory.lastSeen(tenant);
    // The first cell is away, and somebody may have moved the tenant before. Its cell knows that.
    if (last !== undefined && !(await this.absencesOf(last)?.isAbsent(tenant))) return last;
    // Who only looks at a tenant must not make it.
    if (!isPlacing) return (await directory.find(tenant)) ?? FIRST_CELL;
    const there = this.weighted.filter(({ name }) => name === FIRST_CELL || this.running.has(name));
    return directory.place(tenant, there);
  }

  private absencesOf(name: string): CellAbsences | undefined {
    return (name === FIRST_CELL ? this.first : this.running.get(name))?.absences;
  }

  private *watched(): Iterable<WatchedCell> {
    if (this.first) yield { name: FIRST_CELL, ...this.first };
    for (const [name, { unanswered, ask }] of this.running) yield { name, unanswered, ask };
  }

  private refreshAbsences(): void {
    for (const name of [FIRST_CELL, ...this.running.keys()]) {
      this.absencesOf(name)
        ?.refresh()
        .catch((error: unknown) => {
          this.options.onTrouble(name, error as Error);
        });
    }
  }

  private backend(name: string): Backend | undefined {
    if (this.watch.isAway(name)) throw unavailable(name);
    if (name === FIRST_CELL) return undefined;
    const cell = this.running.get(name);
    if (cell) return cell.backend;
    if (this.weighted.some((one) => one.name === name)) throw unavailable(name);
    throw new ApiError('database-unavailable', `This node does not know the cell ${name}.`);
  }

  private checked(name: string | string[]): string {
    const found = this.weighted.find((cell) => cell.name === name);
    if (found) return found.name;
    const names = this.weighted.map((cell) => cell.name).join(', ');
    throw invalidRequest([{ pointer: `/${CELL_HEADER}`, in: 'header', detail: `must be a cell: ${names}` }]);
  }

  /** Resolves when a cell may be started; `nextTurn` must follow. */
  private async turn(): Promise<void> {
    if (this.freeTurns > 0) this.freeTurns -= 1;
    else await new Promise<void>((resolve) => this.waitingForTurn.push(resolve));
  }

  private nextTurn(): void {
    const next = this.waitingForTurn.shift();
    if (next) next();
    else this.freeTurns += 1;
  }

  private async start(cell: CellConfig): Promise<void> {
    const { signal } = this.stopping;
    for (let told = ''; ;) {
      await this.turn();
      if (signal.aborted) {
        this.nextTurn();
        return;
      }
      const starting = this.options.start(cell);
      void Promise.race([starting, sleep(TURN_MS, undefined, { ref: false })])
        .catch(() => undefined)
        .then(() => {
          this.nextTurn();
        });
      try {
        this.running.set(cell.name, await starting);
        return;
      } catch (error) {
        const { message } = error as Error;
        if (message !== told) this.options.onTrouble(cell.name, error as Error);
        told = message;
        const ms = error instanceof ConfigError ? MISTAKEN_RETRY_MS : RETRY_MS;
        await sleep(ms, undefined, { signal, ref: false }).catch(() => undefined);
      }
    }
  }
}

/** Whether a request gives a tenant a cell. One that follows what comes has to wait where it will come. */
const mayPlace = ({ method, headers }: FastifyRequest): boolean =>
  (method !== 'GET' && method !== 'HEAD') || headers.accept?.includes('text/event-stream') === true;

const unavailable = (cell: string): ApiError =>
  new ApiError('database-unavailable', `The cell ${cell} cannot be reached; try again.`);

/** Whose cell a request is for: the caller's, or that of the tenant that an operator looks after. */
function tenantOf({ params, caller }: FastifyRequest, url: string): string | undefined {
  if (!url.startsWith('/v1/admin/')) return caller?.tenant;
  const { id = '' } = params as { id?: string };
  return TENANT_ID.test(id) ? id : undefined;
}
