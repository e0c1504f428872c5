const { COLLOQUY_URL = 'http://127.0.0.1:3000', COLLOQUY_API_KEY } = process.env;

/**
 * Passes chats on to Colloquy, so that its key stays on this side. Put your own sign-in in front of it, and let each user
 * reach the chats of that user only.
 */
async function pass(request, { params }) {
  const { path = [] } = await params;
  const answer = await fetch([`${COLLOQUY_URL}/ai-sdk/chat`, ...path.map(encodeURIComponent)].join('/'), {
    method: request.method,
    headers: {
      'content-type': 'application/json',
      ...(COLLOQUY_API_KEY && { authorization: `Bearer ${COLLOQUY_API_KEY}` }),
    },
    body: request.method === 'POST' ? (await request.text()) || undefined : undefined,
    signal: request.signal,
  });
  const headers = new Headers();
  for (const name of ['content-type', 'x-vercel-ai-ui-message-stream', 'x-error-code']) {
    const value = answer.headers.get(name);
    if (value !== null) headers.set(name, value);
  }
  return new Response(answer.body, { status: answer.status, headers });
}

export { pass as GET, pass as POST };
