import { call } from '../api/client.js';
import { Notice } from '../ui/notice.js';
import { Checkpoints } from './checkpoints.js';
import { Health } from './health.js';
import { Keys } from './keys.js';
import { ReadModels } from './read-models.js';
import { Relay } from './relay.js';
import { useResource } from '../ui/resource.js';
import { Sweeper } from './sweeper.js';
import { Tenants } from './tenants.js';

const REFRESH_MS = 3_000;

/** The sections, in their order on the page. */
const SECTIONS = [
  { id: 'read-models', name: 'Read models', Section: ReadModels },
  { id: 'relay', name: 'Relay', Section: Relay },
  { id: 'sweeper', name: 'Sweeper', Section: Sweeper },
  { id: 'tenants', name: 'Tenants', Section: Tenants },
  { id: 'keys', name: 'Keys', Section: Keys },
  { id: 'checkpoints', name: 'Checkpoints', Section: Checkpoints },
] as const;

/** For operators: what the service does, and what can be done about it. */
export function OperationsView() {
  // Whoever may read this may do the rest: all of it needs the scope `admin`.
  const cells = useResource((signal) => call('get', '/v1/admin/cells', { signal }), REFRESH_MS);
  return (
    <div class="view">
      <header class="bar">
        <h1 tabIndex={-1}>Operations</h1>
      </header>
      <div class="scrolls" role="region" aria-label="Operations" tabIndex={0}>
        <Health cells={cells.data?.data} />
        {cells.problem && <Notice problem={cells.problem} retry={() => void cells.load()} />}
        {cells.data &&
          SECTIONS.map(({ id, name, Section }) => (
            <section key={id} aria-labelledby={id}>
              <h2 id={id}>{name}</h2>
              <Section />
            </section>
          ))}
      </div>
    </div>
  );
}
