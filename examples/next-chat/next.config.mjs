const colloquy = process.env.COLLOQUY_URL ?? 'http://127.0.0.1:3000';

/** The browser talks to this server alone, which passes chats on to Colloquy. Put your own sign-in in front of it. */
export default {
  // Compressed streams would wait for more to compress.
  compress: false,
  rewrites: () => [{ source: '/api/chat/:path*', destination: `${colloquy}/ai-sdk/chat/:path*` }],
};
