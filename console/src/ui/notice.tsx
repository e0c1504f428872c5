import { type Problem } from '../api/problem.js';

const TITLES: Readonly<Record<number, string>> = {
  0: 'The service does not answer',
  401: 'The key is not accepted',
  403: 'This key may not do that',
  404: 'There is no such thing',
  409: 'Not now',
  410: 'It is gone',
  429: 'Too much at once',
  503: 'The service is not ready for this yet',
};

/** What failed, and what can be done. */
export function Notice({ problem, retry }: { problem: Problem; retry?: () => void }) {
  return (
    <div class="notice" role="alert">
      <strong>{TITLES[problem.status] ?? 'That did not work'}</strong>
      <p>
        {problem.message} <code>{problem.code}</code>
      </p>
      {retry && (
        <button type="button" onClick={retry}>
          Try again
        </button>
      )}
    </div>
  );
}
