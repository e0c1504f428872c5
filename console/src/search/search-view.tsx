import { useSignal } from '@preact/signals';
import { useEffect, useRef } from 'preact/hooks';
import { call } from '../api/client.js';
import { asProblem, isAbort, type Problem } from '../api/problem.js';
import { focusOn, useKeys } from '../keys.js';
import { address, adjust, type Route } from '../router.js';
import { countOf, visible } from '../ui/format.js';
import { Notice } from '../ui/notice.js';
import { Time } from '../ui/time.js';

type Hit = Awaited<ReturnType<typeof find>>['data'][number];
const ROLES = ['user', 'assistant', 'system', 'developer', 'tool'] as const;
const TYPING_MS = 250;

const find = (
  query: { q: string; role: string; owner: string; cursor: string | undefined },
  signal: AbortSignal,
) =>
  call('get', '/v1/search', {
    query: {
      q: query.q,
      ...(query.owner !== '' && { owner: query.owner }),
      ...(query.cursor !== undefined && { cursor: query.cursor }),
      ...roleIn(query.role),
    },
    signal,
  });

const roleIn = (text: string): { role?: (typeof ROLES)[number] } => {
  const role = ROLES.find((one) => one === text);
  return role ? { role } : {};
};

/** Full text over the messages of all sessions. */
export function SearchView({ query }: Route) {
  const q = query.get('q') ?? '';
  const role = query.get('role') ?? '';
  const owner = query.get('owner') ?? '';
  const hits = useSignal<readonly Hit[] | undefined>(undefined);
  const next = useSignal<string | undefined>(undefined);
  const problem = useSignal<Problem | undefined>(undefined);
  const running = useRef(new AbortController());
  const timer = useRef<ReturnType<typeof setTimeout> | undefined>(undefined);

  const load = async (cursor?: string): Promise<void> => {
    running.current.abort();
    running.current = new AbortController();
    try {
      const page = await find({ q, role, owner, cursor }, running.current.signal);
      hits.value = cursor === undefined ? page.data : [...(hits.value ?? []), ...page.data];
      next.value = page.nextCursor ?? undefined;
      problem.value = undefined;
    } catch (error) {
      if (!isAbort(error)) problem.value = asProblem(error);
    }
  };
  useEffect(() => {
    if (q.trim() === '') hits.value = undefined;
    else void load();
    return () => {
      running.current.abort();
    };
  }, [q, role, owner]);
  useEffect(() => {
    focusOn('#query');
  }, []);

  const results = (): HTMLElement[] => [...document.querySelectorAll<HTMLElement>('.hits a')];
  const step = (by: number): void => {
    const all = results();
    const place = all.indexOf(document.activeElement as HTMLElement);
    all[Math.min(Math.max(place + by, 0), all.length - 1)]?.focus();
  };
  useKeys({
    '/': () => {
      focusOn('#query');
    },
    j: () => {
      step(1);
    },
    k: () => {
      step(-1);
    },
  });

  return (
    <div class="view">
      <header class="bar">
        <h1 tabIndex={-1}>Search</h1>
        <form
          class="filters"
          role="search"
          onSubmit={(event) => {
            event.preventDefault();
          }}
        >
          <input
            id="query"
            type="search"
            dir="auto"
            maxLength={200}
            placeholder={'Words, or "a phrase"'}
            aria-label="Search in messages"
            defaultValue={q}
            onInput={(event) => {
              const { value } = event.currentTarget;
              clearTimeout(timer.current);
              timer.current = setTimeout(() => {
                adjust(['search'], { q: value });
              }, TYPING_MS);
            }}
          />
          <input
            type="search"
            placeholder="Owner"
            aria-label="Of the owner"
            defaultValue={owner}
            onInput={(event) => {
              const { value } = event.currentTarget;
              clearTimeout(timer.current);
              timer.current = setTimeout(() => {
                adjust(['search'], { owner: value });
              }, TYPING_MS);
            }}
          />
          <select
            aria-label="Of the role"
            value={role}
            onChange={(event) => {
              adjust(['search'], { role: event.currentTarget.value });
            }}
          >
            <option value="">any role</option>
            {ROLES.map((one) => (
              <option key={one} value={one}>
                {one}
              </option>
            ))}
          </select>
        </form>
      </header>
      {problem.value && <Notice problem={problem.value} retry={() => void load()} />}
      <div class="scrolls" role="region" aria-label="What was found" tabIndex={0}>
        <p class="status" role="status">
          {hits.value?.length === 0
            ? 'Nothing was found.'
            : hits.value
              ? next.value
                ? `${hits.value.length} or more messages`
                : countOf(hits.value.length, 'message')
              : 'Searches what is said in all sessions now.'}
        </p>
        <ol class="hits">
          {hits.value?.map((hit) => (
            <li key={`${hit.sessionId} ${hit.version}`}>
              <a class="hit" href={address(['sessions', hit.sessionId], { at: hit.version })}>
                <span class="about">
                  <span class={`role ${hit.role}`}>{hit.role}</span> <span class="id">{hit.sessionId}</span>{' '}
                  <Time at={hit.createdAt} />
                </span>
                <span class="text" dir="auto">
                  {hit.snippet.map((part, index) =>
                    part.match ? <mark key={index}>{visible(part.text)}</mark> : visible(part.text),
                  )}
                </span>
              </a>
            </li>
          ))}
        </ol>
        {next.value !== undefined && (
          <button type="button" onClick={() => void load(next.value)}>
            More
          </button>
        )}
      </div>
    </div>
  );
}
