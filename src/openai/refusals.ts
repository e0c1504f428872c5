import { ApiError, invalidRequest, jsonPointer } from '../http/problem.js';

/** A part of a request that has not the form that the service knows. @param base where the part is */
export const faulty = (
  base: readonly (string | number)[],
  issues: readonly { readonly path: readonly PropertyKey[]; readonly message: string }[],
): ApiError =>
  invalidRequest(
    issues.map(({ path, message }) => ({
      pointer: jsonPointer([...base, ...path]),
      in: 'body' as const,
      detail: message,
    })),
  );

/** What OpenAI's API has and the service does not. @param what is not there, by its name at OpenAI */
export const unsupported = (field: readonly (string | number)[], what: string): ApiError =>
  new ApiError('invalid-request', `${what} is not supported`, {
    details: {
      code: 'unsupported_parameter',
      errors: [{ pointer: jsonPointer(field), in: 'body', detail: `${what} is not supported` }],
    },
  });
