import { type FunctionComponent } from 'preact';
import { call } from '../api/client.js';
import { go, type Route } from '../router.js';
import { Notice } from '../ui/notice.js';
import { Checkpoints } from './checkpoints.js';
import { Health } from './health.js';
import { Keys } from './keys.js';
import { type OfCell } from './of-cell.js';
import { ReadModels } from './read-models.js';
import { Relay } from './relay.js';
import { useResource } from '../ui/resource.js';
import { Sweeper } from './sweeper.js';
import { Tenants } from './tenants.js';

const REFRESH_MS = 3_000;

/** A part of the page; those that are not of a cell are of the whole deployment, or find the cell by themselves. */
interface Part {
  readonly id: string;
  readonly name: string;
  readonly Section: FunctionComponent<OfCell>;
  readonly isOfCell: boolean;
}

/** The sections, in their order on the page. */
const SECTIONS: readonly Part[] = [
  { id: 'read-models', name: 'Read models', Section: ReadModels, isOfCell: true },
  { id: 'relay', name: 'Relay', Section: Relay, isOfCell: true },
  { id: 'sweeper', name: 'Sweeper', Section: Sweeper, isOfCell: true },
  { id: 'tenants', name: 'Tenants', Section: Tenants, isOfCell: false },
  { id: 'keys', name: 'Keys', Section: Keys, isOfCell: false },
  { id: 'checkpoints', name: 'Checkpoints', Section: Checkpoints, isOfCell: true },
];

/** For operators: what the service does, and what can be done about it. */
export function OperationsView({ query }: Route) {
  // Whoever may read this may do the rest: all of it needs the scope `admin`.
  const cells = useResource((signal) => call('get', '/v1/admin/cells', { signal }), REFRESH_MS);
  const names = cells.data?.data.map(({ name }) => name) ?? [];
  const cell = names.length > 1 ? (names.find((name) => name === query.get('cell')) ?? names[0]) : undefined;
  return (
    <div class="view">
      <header class="bar">
        <h1 tabIndex={-1}>Operations</h1>
        {cell !== undefined && (
          <div class="inline">
            <label for="cell" class="quiet">
              Cell
            </label>
            <select
              id="cell"
              value={cell}
              onChange={(event) => {
                // Another cell is another place, to which one may want to come back.
                go(['operations'], { cell: event.currentTarget.value });
              }}
            >
              {names.map((name) => (
                <option key={name} value={name}>
                  {name}
                </option>
              ))}
            </select>
          </div>
        )}
      </header>
      <div class="scrolls" role="region" aria-label="Operations" tabIndex={0}>
        <Health cells={cells.data?.data} cell={cell} />
        {cells.problem && <Notice problem={cells.problem} retry={() => void cells.load()} />}
        {cells.data &&
          SECTIONS.map(({ id, name, Section, isOfCell }) => (
            <section key={id} aria-labelledby={id}>
              <h2 id={id}>{name}</h2>
              {/* What is of a cell begins anew with another one, so that nothing of the one before is left. */}
              <Section key={isOfCell ? cell : undefined} cell={cell} />
            </section>
          ))}
      </div>
    </div>
  );
}
